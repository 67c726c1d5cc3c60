"""Estimators whose process part is a formula of its own: one file each, by the names of advantage.estimator.

A new one is a file here, its row in CREDITS, and its name in ``config.algorithm.Estimator``.
"""

from prime_megatron.algo.credit.base import Credit, CreditTokens
from prime_megatron.algo.credit.prefix_td import prefix_td
from prime_megatron.algo.credit.prime_value import prime_value
from prime_megatron.algo.credit.spro import spro
from prime_megatron.config.algorithm import Estimator

__all__ = ["CREDITS", "Credit", "CreditTokens"]

CREDITS = {
    credit.estimator: credit
    for credit in (
        Credit(Estimator.prime_value, prime_value, outcome_z_score=False),
        Credit(Estimator.prefix_td, prefix_td, outcome_z_score=True),
        Credit(Estimator.spro, spro, outcome_z_score=True),
    )
}
