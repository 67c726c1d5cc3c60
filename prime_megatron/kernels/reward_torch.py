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
    num_tokens, keep_T = mask_T.shape[0], mask_T.float()
    # Two scratch arrays serve every step: on a CPU, touching new memory costs more than the arithmetic.
    left, right = (torch.empty(num_tokens + 2, dtype=torch.float64, device=mask_T.device) for _ in range(2))
    rewards_T = (batch.prm_logprobs_T - batch.ref_logprobs_T).mul_(form.scale)
    # Whatever lies outside the response becomes 0, NaN too; masked_fill_ and where take ten times as long on a CPU.
    rewards_T.view(torch.int32).bitwise_and_(mask_T.to(torch.int32).neg_())
    running = _running_sum(left, rewards_T)
    sum_N = running[end_N] - running[begin_N]
    if form.batch_norm:
        suffixes = _spread(right, running[end_N], begin_N).sub_(running[:-1])
        largest = torch.stack(suffixes.aminmax()).abs().max() if num_tokens else running.new_zeros(())
        divisor = reduce.max(largest.float()) + NORM_EPS
        rewards_T.div_(divisor)
        sum_N = sum_N / divisor
    seen = _running_sum(left, mask_T)
    count_N = seen[end_N] - seen[begin_N]
    mean_N = sum_N / count_N.clamp(min=1)
    gain_N, base_N, outcome_N = leave_one_out(mean_N, batch.group_N, batch.outcome_N.double(), form.leave_one_out)
    weight, final_N = form.process_weight, form.outcome_weight * outcome_N
    # The first place where the count reaches the sequence's final count is its last valid token.
    last_N = torch.searchsorted(seen[1:], seen[end_N]) if form.gamma_outcome != 1.0 else None
    centred_T = _spread(left, weight * gain_N, begin_N).mul_(rewards_T)
    centred_T.sub_(_spread(right, weight * base_N, begin_N)).mul_(keep_T)
    if form.gamma_process == 1.0:
        running = _running_sum(left, None)
        whole_N = running[end_N]
        if last_N is None:
            whole_N = whole_N + final_N
        returns_T = _spread(right, whole_N, begin_N).sub_(running[:-1])
    else:
        returns_T = _discounted(centred_T, form.gamma_process, begin_N, end_N)
        if last_N is None:
            returns_T.add_(_spread(left, final_N, begin_N))
    if last_N is not None:
        last_T = torch.repeat_interleave(last_N, end_N - begin_N, output_size=num_tokens)
        distance_T = (last_T - torch.arange(num_tokens, device=mask_T.device)).clamp_(min=0)
        final_T = _spread(left, final_N, begin_N)
        returns_T.addcmul_(final_T, torch.pow(form.gamma_outcome, distance_T.double()))
    returns_T.mul_(keep_T)
    plain_T = returns_T.float()
    if not form.whiten:
        return rewards_T, plain_T, plain_T
    moments = torch.stack((count_N.sum(), returns_T.sum(), torch.dot(returns_T, returns_T)))
    mean, scale = whitening(reduce.sum(moments))
    return rewards_T, plain_T, returns_T.sub_(mean).mul_(scale).mul_(keep_T).float()


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


def _running_sum(scratch: torch.Tensor, values_T: torch.Tensor | None) -> torch.Tensor:
    """Sum of the values before each position, float64 [T + 1], in `scratch` [T + 2]; None: of those `_spread` left."""
    if values_T is not None:
        scratch[1:-1].copy_(values_T)
    scratch[0] = 0.0
    running = scratch[:-1]
    return torch.cumsum(running, 0, out=running)


def _spread(scratch: torch.Tensor, values_N: torch.Tensor, begin_N: torch.Tensor) -> torch.Tensor:
    """Each sequence's value at each of its tokens, float64 [T], in `scratch` [T + 2].

    The running sum of the steps between sequences: a gather takes many times as long. Rounding is that of float64.
    """
    steps = scratch[1:].zero_()
    steps.index_add_(0, begin_N, torch.diff(values_N, prepend=values_N.new_zeros(1)))
    return torch.cumsum(steps, 0, out=steps)[:-1]


def _discounted(values_T: torch.Tensor, gamma: float, begin_N: torch.Tensor, end_N: torch.Tensor) -> torch.Tensor:
    """sum over s >= t in the same sequence of gamma^(s-t) * values_s, float64 [T], gamma < 1.

    By doubling, after step k an element covers 2^k tokens; the number of steps is that of the longest sequence or of
    the discount's decay, whichever is shorter.
    """
    num_tokens = values_T.shape[0]
    out_T = values_T.clone()
    if num_tokens == 0 or gamma == 0.0:
        return out_T
    lengths_N = end_N - begin_N
    positions_T = torch.arange(num_tokens, device=values_T.device)
    left_T = torch.repeat_interleave(end_N, lengths_N, output_size=num_tokens).sub_(positions_T)
    longest = int(lengths_N.max())
    shift, factor = 1, gamma
    while shift < longest and factor > NEGLIGIBLE:
        reach_T = torch.where(left_T[:-shift] > shift, out_T[shift:], 0.0)
        out_T[:-shift] += reach_T.mul_(factor)
        shift, factor = 2 * shift, factor * factor
    return out_T
