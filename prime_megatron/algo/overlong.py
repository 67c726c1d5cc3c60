"""Soft punishment of long responses (DAPO, arXiv 2503.14476, equation 13)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from prime_megatron.algo.segments import segment_count
from prime_megatron.algo.statistics import Statistics
from prime_megatron.config.algorithm import AdvantageAlgorithm
from prime_megatron.types import RolloutBatch


def overlong_penalty(batch: RolloutBatch, config: AdvantageAlgorithm, limit: int) -> Tensor:
    """What a response's length takes from its outcome, [N]: 0 up to limit - buffer tokens, from there linearly up to
    overlong_penalty at the limit. limit: rollout.sampling.max_response_tokens."""
    assert config.overlong_buffer is not None
    length_N = segment_count(batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel())
    beyond_N = (length_N - (limit - config.overlong_buffer)) / config.overlong_buffer
    return (config.overlong_penalty * beyond_N.clamp(0.0, 1.0)).to(batch.outcome_N.dtype)


def with_overlong_penalty(batch: RolloutBatch, config: AdvantageAlgorithm, limit: int) -> RolloutBatch:
    """The batch as the outcome source of the advantages sees it; the same where overlong_buffer is none."""
    if config.overlong_buffer is None:
        return batch
    return dataclasses.replace(batch, outcome_N=batch.outcome_N - overlong_penalty(batch, config, limit))


def overlong_statistics(batch: RolloutBatch, config: AdvantageAlgorithm, limit: int) -> Statistics:
    """Sums for outcome/overlong and outcome/overlong_penalty."""
    penalty_N = overlong_penalty(batch, config, limit).double()
    return Statistics(
        {
            "overlong_sequences": torch.ones_like(penalty_N).sum(),
            "overlong_sum": (penalty_N > 0).double().sum(),
            "overlong_penalty_sum": penalty_N.sum(),
        }
    )
