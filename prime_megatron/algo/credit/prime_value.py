"""The PRM as the value function (arXiv 2502.01456, appendix B.3)."""

from __future__ import annotations

from torch import Tensor

from prime_megatron.algo.credit.base import CreditTokens
from prime_megatron.algo.segments import running_sum


def prime_value(tokens: CreditTokens) -> Tensor:
    """-v_t, v_t = beta * sum_{s < t} q_s the value of the text before token t, from the bare log-ratio: neither scaled,
    floored, smoothed nor normed, as it must be in the outcome's units."""
    assert tokens.log_ratio_T is not None, "estimator prime_value needs the PRM's log-ratio"
    q_T = tokens.log_ratio_T.double()
    return -tokens.prm.beta * (running_sum(q_T, tokens.batch.sequence_T, tokens.batch.outcome_N.numel()) - q_T)
