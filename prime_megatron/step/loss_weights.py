"""What each response token counts in the policy's loss: which ones do, what divides their sum, and their weight against
the engine.

The divisors are counts of a mini-batch over all data-parallel ranks, so that micro-batches and layout cannot change a
loss. What is left out (truncated, rejected) leaves its counts, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.algo.importance import importance
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import segment_count
from prime_megatron.config import ImportanceMode, LossAggregation, PolicyAlgorithm
from prime_megatron.types import MiniBatch, RolloutBatch, Scores


@dataclass(frozen=True)
class LossWeights:
    """Of every token of this rank's batch, float32 [T]."""

    weights_T: Tensor
    """A token's share of its mini-batch's loss; 0 where it does not count, and outside the response."""
    factors_T: Tensor
    """Importance weight against the engine, a factor of the advantage; 1 without a correction."""


def loss_weights(
    config: PolicyAlgorithm,
    batch: RolloutBatch,
    scores: Scores,
    minis: Sequence[MiniBatch],
    longest: int,
    reduce: Reduction,
) -> LossWeights:
    """The weights of a step. longest: rollout.sampling.max_response_tokens.

    Calls reduce.sum once where the config can leave tokens out, on all ranks alike.
    """
    sequence_T, count = batch.sequence_T, batch.outcome_N.numel()
    keep_T, factors_T = batch.response_mask_T, torch.ones_like(batch.engine_logprobs_T)
    if config.mask_truncated:
        keep_T = keep_T & ~batch.truncated_N[sequence_T]
    if config.importance_cap is not None:
        assert scores.old_logprobs_T is not None, "the step plan skipped a score that is needed"
        correction = importance(batch, scores.old_logprobs_T, config)
        keep_T, factors_T = keep_T & correction.keep_T, correction.weights_T
    length_N = segment_count(keep_T, sequence_T, count)
    mini_N = torch.zeros(count, dtype=torch.int64, device=keep_T.device)
    for index, mini in enumerate(minis):
        for micro in mini.micro:
            mini_N[micro.sequence_index.to(mini_N.device)] = index
    counts = torch.tensor([[mini.num_tokens, mini.num_sequences] for mini in minis], dtype=torch.float64)
    counts_M2 = counts.to(keep_T.device)
    rejects = config.importance_cap is not None and config.importance_mode is ImportanceMode.reject
    if config.mask_truncated or rejects:
        here_N2 = torch.stack([length_N, (length_N > 0).double()], 1)
        counts_M2 = reduce.sum(torch.zeros_like(counts_M2).index_add(0, mini_N, here_N2))
    tokens_N, sequences_N = counts_M2.clamp(min=1.0)[mini_N].unbind(1)
    divisor_N = {
        LossAggregation.token_mean: tokens_N,
        LossAggregation.sequence_mean: sequences_N * length_N.clamp(min=1.0),
        LossAggregation.sequence_sum: sequences_N,
        LossAggregation.constant_length: sequences_N * longest,
    }[config.loss_aggregation]
    weights_T = torch.where(keep_T, (1.0 / divisor_N)[sequence_T], 0.0)
    return LossWeights(weights_T.float(), factors_T.float())
