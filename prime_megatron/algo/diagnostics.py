"""What process rewards say of themselves where no truth is known: are they spread over the text, do they lean on tokens
that the reference hardly expects, do they agree with the outcome.

A few tokens that hold most of the reward, or reward on improbable tokens far beyond their number, are signs of a PRM
that is being exploited; a correlation near 0 or below it, of one that says nothing of the outcome.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import Siblings, segment_mean
from prime_megatron.algo.statistics import Statistics
from prime_megatron.types import RolloutBatch

LARGEST = 0.01
"""Share of the response tokens whose rewards `largest_share` adds up."""
IMPROBABLE = 0.01
"""A token of a smaller probability under the reference is improbable."""


def reward_statistics(batch: RolloutBatch, process_rewards_T: Tensor, ref_logprobs_T: Tensor | None) -> Statistics:
    """Sums for process_reward/improbable_* and process_reward/outcome_correlation; both arguments [T].

    ref_logprobs_T: None where there is no reference, and then no improbable_*.

    The correlation is Pearson's over responses, of a_i = m_i - mean of m over the siblings and b_i = o_i - mean of o
    over them, m_i the mean process reward of the response's tokens, o_i its outcome.
    """
    mask_T, num_sequences = batch.response_mask_T, batch.outcome_N.numel()
    siblings = Siblings.of(batch.group_N)
    mean_N = segment_mean(process_rewards_T.double(), mask_T, batch.sequence_T, num_sequences)
    reward_N, outcome_N = (x_N - siblings.sum(x_N) / siblings.size_N for x_N in (mean_N, batch.outcome_N.double()))
    sums = {
        "reward_outcome_product": (reward_N * outcome_N).sum(),
        "reward_centred_square": reward_N.square().sum(),
        "outcome_centred_square": outcome_N.square().sum(),
    }
    if ref_logprobs_T is not None:
        size_T = torch.where(mask_T, process_rewards_T.double().abs(), 0.0)
        improbable_T = mask_T & (ref_logprobs_T < math.log(IMPROBABLE))
        sums |= {
            "reward_tokens": mask_T.double().sum(),
            "reward_size_sum": size_T.sum(),
            "reward_improbable_sum": size_T[improbable_T].sum(),
            "reward_improbable_tokens": improbable_T.double().sum(),
        }
    return Statistics(sums)


def largest_share(process_rewards_T: Tensor, response_mask_T: Tensor, reduce: Reduction) -> float:
    """Sum of |r| over the largest LARGEST of all ranks' response tokens (at least one), over the sum of all |r|; 0
    where there is no reward.

    The k-th largest is found digit by digit of its bits, which order as non-negative floats do, so that ranks exchange
    histograms of 256 numbers. Calls reduce.sum six times.
    """
    size_t = process_rewards_T[response_mask_T].float().abs()
    count, total = reduce.sum(torch.stack([torch.ones_like(size_t).double().sum(), size_t.double().sum()])).tolist()
    wanted = max(1, math.ceil(LARGEST * count))
    bits_t, prefix = size_t.view(torch.int32).long(), 0
    for shift in (24, 16, 8, 0):
        here_t = bits_t[bits_t >> (shift + 8) == prefix]
        tally = reduce.sum(torch.bincount((here_t >> shift) & 255, minlength=256).double())
        above = tally.flip(0).cumsum(0).flip(0) - tally  # tokens of a larger digit
        digit = int(torch.nonzero(above < wanted)[0])
        wanted -= int(above[digit])
        prefix = (prefix << 8) | digit
    edge = float(torch.tensor(prefix, dtype=torch.int32).view(torch.float32))
    beyond = float(reduce.sum(size_t[bits_t > prefix].double().sum()))
    return (beyond + wanted * edge) / total if total > 0.0 else 0.0
