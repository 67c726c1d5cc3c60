"""What is done about an engine whose probabilities are not the trainer's: weights, masks and rejection.

With d_t = log trainer - log engine of a response token, the ratio of a token at each level of policy.importance_level:

    token       exp(d_t)                        sequence    exp(sum of d over the response)
    geometric   exp(mean of d over the response)

and what policy.importance_mode makes of it, with lo = policy.importance_floor and hi = policy.importance_cap:

    cap     weight min(ratio, hi)                           truncated importance sampling (Ionides 2008)
    mask    weight ratio within [lo, hi], else 0            IcePop's mask; what is masked still counts in the mean
    reject  weight 1 within [lo, hi]; else left out         rejection: the mean is over what is left

Ratios stop at e^20 (``algo.kl``). No gradient goes through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.algo.kl import clamped_ratio
from prime_megatron.algo.segments import segment_mean, segment_sum
from prime_megatron.config.algorithm import ImportanceLevel, ImportanceMode, PolicyAlgorithm
from prime_megatron.types import RolloutBatch


@dataclass(frozen=True)
class Importance:
    """Of every token of a batch, [T]; outside the response weight 1, kept, and within the bounds."""

    weights_T: Tensor
    """Float32: a factor of the advantage."""
    keep_T: Tensor
    """Bool: the token stays in the loss."""
    above_T: Tensor
    """Bool: the ratio is above importance_cap."""
    below_T: Tensor
    """Bool: the ratio is below importance_floor, in the modes that have one."""


def importance(batch: RolloutBatch, old_logprobs_T: Tensor, config: PolicyAlgorithm) -> Importance:
    """The table above on a batch whose sequences are whole on this rank; needs importance_cap."""
    assert config.importance_cap is not None
    with torch.no_grad():
        mask_T, sequence_T, count = batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel()
        gap_T = torch.where(mask_T, old_logprobs_T - batch.engine_logprobs_T, 0.0)
        if config.importance_level is ImportanceLevel.sequence:
            gap_T = segment_sum(gap_T, sequence_T, count)[sequence_T]
        elif config.importance_level is ImportanceLevel.geometric:
            gap_T = segment_mean(gap_T, mask_T, sequence_T, count)[sequence_T]
        ratio_T = torch.where(mask_T, clamped_ratio(gap_T), 1.0)
        everywhere_T = torch.ones_like(mask_T)
        above_T = mask_T & (ratio_T > config.importance_cap)
        if config.importance_mode is ImportanceMode.cap:
            return Importance(ratio_T.clamp(max=config.importance_cap), everywhere_T, above_T, ~everywhere_T)
        below_T = mask_T & (ratio_T < config.importance_floor)
        inside_T = ~(above_T | below_T)
        if config.importance_mode is ImportanceMode.mask:
            return Importance(torch.where(inside_T, ratio_T, 0.0), everywhere_T, above_T, below_T)
        return Importance(torch.ones_like(ratio_T), inside_T, above_T, below_T)
