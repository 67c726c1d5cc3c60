"""The reward path in whole-array torch: sums over sequences are differences of one float64 running sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prime_megatron.kernels.reward_loop import NORM_EPS, WHITEN_EPS

if TYPE_CHECKING:
    from prime_megatron.kernels.reward import Reduce, RewardBatch, RewardForm

NEGLIGIBLE = 1e-12  # a discount below this adds nothing to an fp32 return


def torch_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduce
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(process_rewards_T, returns_T, advantages_T); see reward.py for the steps."""
    mask_T, begin_N, end_N = batch.response_mask_T, batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
    num_tokens, lengths_N = mask_T.shape[0], end_N - begin_N
    rewards_T = torch.where(mask_T, (batch.prm_logprobs_T - batch.ref_logprobs_T) * form.scale, 0.0)
    running = _running_sum(rewards_T)
    if form.batch_norm:
        spans = torch.repeat_interleave(running[end_N], lengths_N, output_size=num_tokens)
        suffixes = spans.sub_(running[:-1]).abs_()
        largest = suffixes.max() if num_tokens else running.new_zeros(())
        divisor = reduce.max(largest.float()) + NORM_EPS
        rewards_T, running = rewards_T / divisor, running / divisor
    count_N, last_N = _valid(mask_T, begin_N, end_N)
    mean_N = (running[end_N] - running[begin_N]) / count_N.clamp(min=1)
    gain_N, base_N, outcome_N = leave_one_out(mean_N, batch.group_N, batch.outcome_N.double(), form.leave_one_out)

    def spread(values_N: torch.Tensor) -> torch.Tensor:
        return torch.repeat_interleave(values_N, lengths_N, output_size=num_tokens)

    weight = form.process_weight
    centred_T = torch.where(mask_T, rewards_T * spread(weight * gain_N) - spread(weight * base_N), 0.0)
    returns_T = _discounted(centred_T, form.gamma_process, end_N, lengths_N)
    final_N = form.outcome_weight * outcome_N
    if form.gamma_outcome == 1.0:
        returns_T += spread(final_N)
    else:
        distance_T = (spread(last_N) - torch.arange(num_tokens, device=mask_T.device)).clamp(min=0)
        returns_T += spread(final_N) * torch.pow(form.gamma_outcome, distance_T.double())
    returns_T = torch.where(mask_T, returns_T, 0.0)
    if not form.whiten:
        return rewards_T, returns_T.float(), returns_T.float()
    moments = torch.stack((count_N.sum(), returns_T.sum(), torch.dot(returns_T, returns_T)))
    mean, scale = whitening(reduce.sum(moments))
    return rewards_T, returns_T.float(), torch.where(mask_T, (returns_T - mean) * scale, 0.0).float()


def whitening(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, 1 / deviation) from (count, sum, sum of squares), float64 [3]; Bessel-corrected."""
    count, total, squares = moments
    mean = total / count.clamp(min=1)
    variance = (squares - total * mean).clamp(min=0) / (count - 1).clamp(min=1)
    return mean, torch.rsqrt(variance + WHITEN_EPS)


def leave_one_out(
    mean_N: torch.Tensor, group_N: torch.Tensor, outcome_N: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gain, base, outcome) of every sequence: r~ = gain * r - base. A table of who is whose sibling, [N, N]."""
    sibling_NN = (group_N[:, None] == group_N[None, :]).double()
    size_N = sibling_NN.sum(1)
    others_N = (size_N - 1).clamp(min=1)
    sums_N2 = sibling_NN @ torch.stack((mean_N, outcome_N), 1)
    alone_N = size_N == 1
    if form == "code":
        gain_N, base_N = size_N / others_N, sums_N2[:, 0] / others_N
    else:
        gain_N, base_N = torch.ones_like(size_N), (sums_N2[:, 0] - mean_N) / others_N
    outcome_N = outcome_N - torch.where(alone_N, 0.0, (sums_N2[:, 1] - outcome_N) / others_N)
    return torch.where(alone_N, 1.0, gain_N), torch.where(alone_N, 0.0, base_N), outcome_N


def _running_sum(values_T: torch.Tensor) -> torch.Tensor:
    """Sum of the values before each position, float64 [T + 1]."""
    running = torch.zeros(values_T.shape[0] + 1, dtype=torch.float64, device=values_T.device)
    torch.cumsum(values_T, 0, dtype=torch.float64, out=running[1:])
    return running


def _valid(mask_T: torch.Tensor, begin_N: torch.Tensor, end_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Valid tokens of each sequence, float64 [N], and the index of the last one, int64 [N] (begin - 1 for none)."""
    seen = torch.zeros(mask_T.shape[0] + 1, dtype=torch.int64, device=mask_T.device)
    torch.cumsum(mask_T, 0, out=seen[1:])
    # The first place where the count reaches the sequence's final count is its last valid token.
    last_N = torch.searchsorted(seen[1:], seen[end_N])
    count_N = seen[end_N] - seen[begin_N]
    return count_N.double(), torch.where(count_N > 0, last_N, begin_N - 1)


def _discounted(values_T: torch.Tensor, gamma: float, end_N: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """sum over s >= t in the same sequence of gamma^(s-t) * values_s, float64 [T].

    gamma 1: a difference of running sums. Below: doubling, after step k an element covers 2^k tokens; the number of
    steps is that of the longest sequence or of the discount's decay, whichever is shorter.
    """
    num_tokens = values_T.shape[0]
    if gamma == 1.0:
        running = _running_sum(values_T)
        return torch.repeat_interleave(running[end_N], lengths_N, output_size=num_tokens).sub_(running[:-1])
    out_T = values_T.double()
    if num_tokens == 0 or gamma == 0.0:
        return out_T
    positions_T = torch.arange(num_tokens, device=values_T.device)
    left_T = torch.repeat_interleave(end_N, lengths_N, output_size=num_tokens).sub_(positions_T)
    longest = int(lengths_N.max())
    shift, factor = 1, gamma
    while shift < longest and factor > NEGLIGIBLE:
        reach_T = torch.where(left_T[:-shift] > shift, out_T[shift:], 0.0)
        out_T[:-shift] += reach_T.mul_(factor)
        shift, factor = 2 * shift, factor * factor
    return out_T
