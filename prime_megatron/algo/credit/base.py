"""What the process part of an estimator is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prime_megatron.algo.reduction import Reduction
from prime_megatron.config.algorithm import AdvantageAlgorithm, Estimator, PrmAlgorithm
from prime_megatron.types import RolloutBatch


@dataclass(frozen=True)
class CreditTokens:
    """A data-parallel rank's part of the batch; siblings are together, sequences whole."""

    batch: RolloutBatch
    rewards_T: Tensor
    """``process_reward.process_rewards``, float64 [T], 0 outside the response."""
    log_ratio_T: Tensor | None
    """The bare log-ratio that they are made of, [T], not scaled by beta; None where the caller has none."""
    config: AdvantageAlgorithm
    prm: PrmAlgorithm
    reduce: Reduction
    """Over the data-parallel ranks; all call it alike."""


@dataclass(frozen=True)
class Credit:
    """An estimator's process part by its name."""

    estimator: Estimator
    of_tokens: Callable[[CreditTokens], Tensor]
    """Float64 [T]; its values outside the response do not matter. process_weight is a factor of it, outside."""
    outcome_z_score: bool
    """The outcome is grpo's z-score among siblings; False: as it is."""
