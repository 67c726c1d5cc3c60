"""The reward path in torch, vectorised over tokens and sequences.

Without discounts, sums to the end of a sequence are differences of running sums; they are taken a block of sequences
at a time, in scratch arrays that stay in a CPU's cache and are written over: touching new memory costs more than the
arithmetic. What is not per token is folded into numbers per sequence. Avoided, each several times as slow on a CPU as
its alternative here: gathers other than index_select, conversions from bool, where, operations on mixed dtypes.
"""

from __future__ import annotations

import math

import torch

from prime_megatron.algo.baselines import STD_EPS
from prime_megatron.algo.process_reward import NORM_EPS
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.whitening import WHITEN_EPS
from prime_megatron.kernels.reward_form import RewardBatch, RewardForm

BLOCK_TOKENS = 256 * 1024  # on a CPU: scratch of 5 MB, which stays the same memory from block to block
NEGLIGIBLE = 1e-12  # a discount below this adds nothing to an fp32 return


def torch_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduction
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(process_rewards_T, returns_T, advantages_T); see reward.py for the steps."""
    if form.gamma_process == 1.0 and form.gamma_outcome == 1.0:
        return _plain_advantages(batch, form, reduce)
    return _discounted_advantages(batch, form, reduce)


class _Block:
    """Whole sequences `at` of N, tokens `tokens` of T, with scratch of their length."""

    def __init__(self, at: slice, tokens: slice, edges: torch.Tensor, wide: torch.Tensor, narrow: torch.Tensor) -> None:
        self.at, self.tokens = at, tokens
        size = tokens.stop - tokens.start
        self.begin_n, self.end_n = edges[at] - tokens.start, edges[at.start + 1 : at.stop + 1] - tokens.start
        self.sequence_t = torch.repeat_interleave(self.end_n - self.begin_n, output_size=size)
        self.wide, self._narrow = wide[:, : size + 1], narrow[:size]

    def spread(self, values_n: torch.Tensor) -> torch.Tensor:
        """Each sequence's fp32 value at its tokens, in scratch."""
        return torch.index_select(values_n, 0, self.sequence_t, out=self._narrow)

    def bits(self, mask_T: torch.Tensor) -> torch.Tensor:
        """int32, all ones where valid, in the same scratch."""
        return self._narrow.view(torch.int32).copy_(mask_T[self.tokens].view(torch.int8)).neg_()

    def suffix_sums(self, values_t: torch.Tensor, out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """out: fp32, each position's sum to the end of its sequence; returns the sequences' sums, fp64."""
        running, whole_t = (x.view(dtype) for x in self.wide)
        running[0] = 0
        running[1:].copy_(values_t)
        torch.cumsum(running, 0, out=running)
        ends_n = running[self.end_n]
        out.copy_(torch.index_select(ends_n, 0, self.sequence_t, out=whole_t[:-1]).sub_(running[:-1]))
        return (ends_n - running[self.begin_n]).double()


def _blocks(cu_seqlens: torch.Tensor, num_tokens: int) -> list[_Block]:
    edges, device = cu_seqlens.long(), cu_seqlens.device
    ranges = [(0, edges.shape[0] - 1)]
    if device.type == "cpu":
        ranges, ends, first = [], edges.tolist(), 0
        for n in range(1, len(ends)):
            if n + 1 == len(ends) or ends[n + 1] - ends[first] > BLOCK_TOKENS:
                ranges.append((first, n))
                first = n
        spans = [slice(ends[a], ends[b]) for a, b in ranges]
    else:
        spans = [slice(0, num_tokens)]
    longest = max((span.stop - span.start for span in spans), default=0)
    wide = torch.empty(2, longest + 1, dtype=torch.float64, device=device)
    narrow = torch.empty(longest, device=device)
    return [_Block(slice(a, b), span, edges, wide, narrow) for (a, b), span in zip(ranges, spans, strict=True)]


def _plain_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduction
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both discounts 1: sum over s >= t of (gain r - base) is gain * sum of r - base * number of tokens."""
    num_tokens, mask_T = batch.response_mask_T.shape[0], batch.response_mask_T
    blocks = _blocks(batch.cu_seqlens, num_tokens)
    rewards_T, returns_T, advantages_T = (torch.empty_like(batch.prm_logprobs_T) for _ in range(3))
    sum_N, count_N = torch.zeros(2, batch.outcome_N.shape[0], dtype=torch.float64, device=mask_T.device)
    largest = returns_T.new_zeros(())
    for block in blocks:
        at, rewards_t = block.tokens, rewards_T[block.tokens]
        _log_ratio(batch, form, at, rewards_t).mul_(form.scale)
        _masked_(rewards_t, block.bits(mask_T))
        # Until pass two, returns hold the sums of r to the end, and advantages the numbers of valid tokens to the end.
        sum_N[block.at] = block.suffix_sums(rewards_t, returns_T[at], torch.float64)
        count_N[block.at] = block.suffix_sums(mask_T[at].view(torch.int8), advantages_T[at], torch.int64)
        if at.stop > at.start:
            largest = torch.maximum(largest, torch.stack(returns_T[at].aminmax()).abs().max())
    norm = 1.0
    if form.batch_norm:
        norm = 1.0 / (reduce.max(largest) + NORM_EPS).double()
        rewards_T.mul_(norm)
    mean_N = sum_N * norm / count_N.clamp(min=1)
    gain_N, base_N, outcome_N = baselines(mean_N, batch.group_N, batch.outcome_N.double(), form.baseline)
    gain_N, base_N, final_N = (
        x.float() for x in (form.process_weight * norm * gain_N, form.process_weight * base_N,
                            form.outcome_weight * outcome_N)
    )  # fmt: skip
    moments = torch.zeros(2, dtype=torch.float64, device=mask_T.device)
    for block in blocks:
        at, n = block.tokens, block.at
        returns_t = returns_T[at].mul_(block.spread(gain_N[n]))
        returns_t.sub_(advantages_T[at].mul_(block.spread(base_N[n]))).add_(block.spread(final_N[n]))
        _masked_(returns_t, block.bits(mask_T))
        exact_t = block.wide[0, :-1].copy_(returns_t)
        moments += torch.stack((exact_t.sum(), torch.dot(exact_t, exact_t)))
    if not form.whiten:
        return rewards_T, returns_T, returns_T
    mean, scale = whitening(reduce.sum(torch.cat((count_N.sum()[None], moments))))
    for block in blocks:
        at = block.tokens
        _masked_(torch.sub(returns_T[at], mean, out=advantages_T[at]).mul_(scale), block.bits(mask_T))
    return rewards_T, returns_T, advantages_T


def _discounted_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduction
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Any discounts, in float64 over whole arrays."""
    edges = batch.cu_seqlens.long()
    begin_N, end_N = edges[:-1], edges[1:]
    num_tokens, valid_T = batch.response_mask_T.shape[0], batch.response_mask_T.view(torch.int8)
    sequence_T = torch.repeat_interleave(end_N - begin_N, output_size=num_tokens)
    bits_T = valid_T.to(torch.int32).neg_()
    rewards_T = torch.empty_like(batch.prm_logprobs_T)
    _masked_(_log_ratio(batch, form, slice(None), rewards_T).mul_(form.scale), bits_T)
    running = _running_sum(rewards_T, torch.float64)
    sum_N = running[end_N] - running[begin_N]
    if form.batch_norm:
        suffix_T = torch.index_select(running[end_N], 0, sequence_T).sub_(running[:-1])
        largest = torch.stack(suffix_T.aminmax()).abs().max() if num_tokens else running.new_zeros(())
        divisor = reduce.max(largest.float()) + NORM_EPS
        rewards_T.div_(divisor)
        sum_N = sum_N / divisor
    seen = _running_sum(valid_T, torch.int64)
    count_N = (seen[end_N] - seen[begin_N]).double()
    mean_N = sum_N / count_N.clamp(min=1)
    gain_N, base_N, outcome_N = baselines(mean_N, batch.group_N, batch.outcome_N.double(), form.baseline)
    centred_T = (form.process_weight * gain_N)[sequence_T].mul_(rewards_T.double())
    centred_T.sub_((form.process_weight * base_N)[sequence_T]).mul_(valid_T.double())
    returns_T = _discounted(centred_T, form.gamma_process, begin_N, end_N)
    returns_T.add_(_final(form.outcome_weight * outcome_N, form.gamma_outcome, seen, end_N, sequence_T))
    plain_T = _masked_(returns_T.float(), bits_T)
    if not form.whiten:
        return rewards_T, plain_T, plain_T
    returns_T.copy_(plain_T)
    moments = torch.stack((count_N.sum(), returns_T.sum(), torch.dot(returns_T, returns_T)))
    mean, scale = whitening(reduce.sum(moments))
    return rewards_T, plain_T, _masked_(returns_T.sub_(mean).mul_(scale).float(), bits_T)


def _log_ratio(batch: RewardBatch, form: RewardForm, at: slice, out: torch.Tensor) -> torch.Tensor:
    """log((prm + e) / (ref + e)) of the tokens `at` into `out`, e the form's ratio_floor."""
    prm_t, ref_t = batch.prm_logprobs_T[at], batch.ref_logprobs_T[at]
    if form.ratio_floor == 0.0:
        return torch.sub(prm_t, ref_t, out=out)
    log_floor = out.new_full((), math.log(form.ratio_floor))
    return torch.logaddexp(prm_t, log_floor, out=out).sub_(torch.logaddexp(ref_t, log_floor))


def _masked_(values_T: torch.Tensor, bits_T: torch.Tensor) -> torch.Tensor:
    """Zero fp32 values, NaN too, where the int32 bits are zero."""
    values_T.view(torch.int32).bitwise_and_(bits_T)
    return values_T


def whitening(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, 1 / deviation) from (count, sum, sum of squares), float64 [3]; Bessel-corrected."""
    count, total, squares = moments
    mean = total / count.clamp(min=1)
    variance = (squares - total * mean).clamp(min=0) / (count - 1).clamp(min=1)
    return mean, torch.rsqrt(variance + WHITEN_EPS)


def baselines(
    mean_N: torch.Tensor, group_N: torch.Tensor, outcome_N: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gain, base, outcome) of every sequence: r~ = gain * r - base. A table of who is whose sibling, [N, N]."""
    sibling_NN = (group_N[:, None] == group_N[None, :]).double()
    size_N = sibling_NN.sum(1)
    others_N = (size_N - 1).clamp(min=1)
    alone_N = size_N == 1
    values_N2 = torch.stack((mean_N, outcome_N), 1)
    sums_N2 = sibling_NN @ values_N2
    if form in ("z_score", "mean"):
        centre_N2 = sums_N2 / size_N[:, None]
        scale_N2 = torch.ones_like(centre_N2)
        if form == "z_score":
            squares_N2 = sibling_NN @ (values_N2 - centre_N2).square()  # siblings have one centre
            scale_N2 = 1.0 / ((squares_N2 / others_N[:, None]).sqrt() + STD_EPS)
        gain_N, base_N = scale_N2[:, 0], scale_N2[:, 0] * centre_N2[:, 0]
        final_N = scale_N2[:, 1] * (outcome_N - centre_N2[:, 1])
    else:
        final_N = outcome_N - (sums_N2[:, 1] - outcome_N) / others_N
        if form == "code":
            gain_N, base_N = size_N / others_N, sums_N2[:, 0] / others_N
        else:
            gain_N, base_N = torch.ones_like(size_N), (sums_N2[:, 0] - mean_N) / others_N
    alone = (torch.where(alone_N, 1.0, gain_N), torch.where(alone_N, 0.0, base_N))
    return *alone, torch.where(alone_N, outcome_N, final_N)


def _running_sum(values_T: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sum of the values before each position, [T + 1]."""
    running = torch.empty(values_T.shape[0] + 1, dtype=dtype, device=values_T.device)
    running[0] = 0
    sums_T = running[1:].copy_(values_T)
    torch.cumsum(sums_T, 0, out=sums_T)
    return running


def _final(
    final_N: torch.Tensor, gamma: float, seen: torch.Tensor, end_N: torch.Tensor, sequence_T: torch.Tensor
) -> torch.Tensor:
    """final * gamma^(distance to the sequence's last valid token) at each token, float64 [T]."""
    # The first place where the count reaches the sequence's final count is its last valid token.
    last_T = torch.searchsorted(seen[1:], seen[end_N])[sequence_T]
    distance_T = (last_T - torch.arange(last_T.shape[0], device=last_T.device)).clamp_(min=0)
    return torch.pow(gamma, distance_T.double()).mul_(final_N[sequence_T])


def _discounted(values_T: torch.Tensor, gamma: float, begin_N: torch.Tensor, end_N: torch.Tensor) -> torch.Tensor:
    """sum over s >= t in the same sequence of gamma^(s-t) * values_s, float64 [T].

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
