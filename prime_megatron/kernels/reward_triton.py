"""The reward path on GPUs: one program a sequence, two passes over it, and one over the tokens for whitening.

Every sum has a fixed order (no atomics), so results are the same bits in every run. The group statistics are a few
hundred floats: each program of the second pass adds up its own siblings from them.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from prime_megatron.algo.baselines import STD_EPS
from prime_megatron.algo.process_reward import NORM_EPS
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.whitening import WHITEN_EPS
from prime_megatron.kernels.reward_form import RewardBatch, RewardForm

BLOCK = 512
SIBLING_BLOCK = 1024
WHITEN_BLOCK = 2048
NUM_WARPS = 2


@triton.jit
def _decayed(left_value, left_decay, right_value, right_decay):
    """Compose two spans of a reverse discounted sum; `left` is the one scanned first, i.e. the later tokens."""
    return right_value + right_decay * left_value, left_decay * right_decay


@triton.jit
def _floored(logprob, log_floor):
    """log(exp(logprob) + exp(log_floor)); the exponent is never above 0."""
    return tl.maximum(logprob, log_floor) + tl.log(1.0 + tl.exp(-tl.abs(logprob - log_floor)))


@triton.jit
def _block(prm_ptr, ref_ptr, mask_ptr, begin, first, lanes, log_floor, FLOOR: tl.constexpr):
    """(valid, log-ratio or 0) of the tokens begin + first + lanes, those before `begin` being invalid."""
    inside = first + lanes >= 0
    at = begin + first
    valid = tl.load(mask_ptr + at + lanes, mask=inside, other=0) != 0
    prm = tl.load(prm_ptr + at + lanes, mask=inside, other=0.0)
    ref = tl.load(ref_ptr + at + lanes, mask=inside, other=0.0)
    if FLOOR:
        prm, ref = _floored(prm, log_floor), _floored(ref, log_floor)
    return valid, tl.where(valid, prm - ref, 0.0)


@triton.jit
def _scan_kernel(
    prm_ptr, ref_ptr, mask_ptr, cu_ptr, peak_ptr, mean_ptr, count_ptr, last_ptr, scale, log_floor,
    FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per sequence: max |suffix sum| of q, mean of q, number of valid tokens and position of the last."""
    n = tl.program_id(0)
    begin = tl.load(cu_ptr + n)
    first = (tl.load(cu_ptr + n + 1) - begin).to(tl.int32) - BLOCK
    lanes = tl.arange(0, BLOCK)
    peaks = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.int32)
    lasts = tl.full([BLOCK], -1, tl.int32)
    carry = 0.0
    valid, q = _block(prm_ptr, ref_ptr, mask_ptr, begin, first, lanes, log_floor, FLOOR)
    while first > -BLOCK:
        # The next block is asked for before this one is summed up.
        valid_next, q_next = _block(prm_ptr, ref_ptr, mask_ptr, begin, first - BLOCK, lanes, log_floor, FLOOR)
        q = q * scale
        suffix = tl.cumsum(q, 0, reverse=True) + carry
        peaks = tl.maximum(peaks, tl.where(first + lanes >= 0, tl.abs(suffix), 0.0))
        carry += tl.sum(q, 0)
        counts += valid.to(tl.int32)
        lasts = tl.maximum(lasts, tl.where(valid, first + lanes, -1))
        valid, q, first = valid_next, q_next, first - BLOCK
    count = tl.sum(counts, 0).to(tl.float32)
    tl.store(peak_ptr + n, tl.max(peaks, 0))
    tl.store(mean_ptr + n, carry / tl.maximum(count, 1.0))
    tl.store(count_ptr + n, count)
    tl.store(last_ptr + n, begin + tl.max(lasts, 0))


@triton.jit
def _return_kernel(
    prm_ptr, ref_ptr, mask_ptr, cu_ptr, group_ptr, outcome_ptr, mean_ptr, count_ptr, last_ptr, peak_ptr,
    reward_ptr, return_ptr, moment_ptr, scale, log_floor, process_weight, outcome_weight, log2_gamma_p, log2_gamma_o,
    FLOOR: tl.constexpr, NUM_SEQUENCES: tl.constexpr, BATCH_NORM: tl.constexpr, FORM: tl.constexpr,
    STD_EPS: tl.constexpr, PLAIN_P: tl.constexpr, PLAIN_O: tl.constexpr, EPS: tl.constexpr, SIBLINGS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Per sequence: its baselines from its siblings, then rewards, returns and the returns' moments."""
    n = tl.program_id(0)
    begin = tl.load(cu_ptr + n)
    first = (tl.load(cu_ptr + n + 1) - begin).to(tl.int32) - BLOCK
    lanes = tl.arange(0, BLOCK)
    valid, q = _block(prm_ptr, ref_ptr, mask_ptr, begin, first, lanes, log_floor, FLOOR)
    group, mean, outcome = tl.load(group_ptr + n), tl.load(mean_ptr + n), tl.load(outcome_ptr + n)
    last = (tl.load(last_ptr + n) - begin).to(tl.int32)
    size = 0.0
    means = 0.0
    outcomes = 0.0
    for block in tl.static_range(0, NUM_SEQUENCES, SIBLINGS):
        who = block + tl.arange(0, SIBLINGS)
        real = who < NUM_SEQUENCES
        same = real & (tl.load(group_ptr + who, mask=real, other=0) == group)
        size += tl.sum(same.to(tl.float32), 0)
        means += tl.sum(tl.where(same, tl.load(mean_ptr + who, mask=real, other=0.0), 0.0), 0)
        outcomes += tl.sum(tl.where(same, tl.load(outcome_ptr + who, mask=real, other=0.0), 0.0), 0)
    others = tl.maximum(size - 1.0, 1.0)
    alone = size < 1.5
    norm = 1.0
    if BATCH_NORM:
        norm = 1.0 / (tl.load(peak_ptr) + EPS)
    factor = scale * norm
    means = means * norm
    mean = mean * norm
    final = outcome - (outcomes - outcome) / others
    if FORM == "code":
        gain = size / others
        base = means / others
    elif FORM == "paper":
        gain = 1.0
        base = (means - mean) / others
    else:
        # In float64: siblings that are all alike differ from their mean by rounding, which a deviation of 0 magnifies.
        total = tl.zeros([], tl.float64)
        total_o = tl.zeros([], tl.float64)
        square = tl.zeros([], tl.float64)
        square_o = tl.zeros([], tl.float64)
        for turn in tl.static_range(2):
            for block in tl.static_range(0, NUM_SEQUENCES, SIBLINGS):
                who = block + tl.arange(0, SIBLINGS)
                real = who < NUM_SEQUENCES
                same = real & (tl.load(group_ptr + who, mask=real, other=0) == group)
                value = tl.load(mean_ptr + who, mask=real, other=0.0).to(tl.float64)
                value_o = tl.load(outcome_ptr + who, mask=real, other=0.0).to(tl.float64)
                if turn == 0:
                    total += tl.sum(tl.where(same, value, 0.0), 0)
                    total_o += tl.sum(tl.where(same, value_o, 0.0), 0)
                else:
                    off = value - total / size
                    off_o = value_o - total_o / size
                    square += tl.sum(tl.where(same, off * off, 0.0), 0)
                    square_o += tl.sum(tl.where(same, off_o * off_o, 0.0), 0)
        gain = 1.0
        scale_o = 1.0
        if FORM == "z_score":
            gain = (1.0 / (tl.sqrt(square / others) * norm + STD_EPS)).to(tl.float32)
            scale_o = (1.0 / (tl.sqrt(square_o / others) + STD_EPS)).to(tl.float32)
        base = gain * (total / size).to(tl.float32) * norm
        final = scale_o * (outcome - total_o / size).to(tl.float32)
    gain = tl.where(alone, 1.0, gain)
    base = tl.where(alone, 0.0, base)
    final = outcome_weight * tl.where(alone, outcome, final)
    carry = 0.0
    totals = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    while first > -BLOCK:
        valid_next, q_next = _block(prm_ptr, ref_ptr, mask_ptr, begin, first - BLOCK, lanes, log_floor, FLOOR)
        reward = q * factor
        centred = tl.where(valid, process_weight * (gain * reward - base), 0.0)
        if PLAIN_P:
            summed = tl.cumsum(centred, 0, reverse=True) + carry
            carry += tl.sum(centred, 0)
        else:
            decays = tl.full([BLOCK], 1.0, tl.float32) * tl.exp2(log2_gamma_p)
            local, _ = tl.associative_scan((centred, decays), 0, _decayed, reverse=True)
            summed = local + carry * tl.exp2(log2_gamma_p * (BLOCK - lanes).to(tl.float32))
            carry = tl.sum(tl.where(lanes == 0, summed, 0.0), 0)
        if PLAIN_O:
            gained = summed + final
        else:
            gained = summed + final * tl.exp2(log2_gamma_o * tl.maximum(last - first - lanes, 0).to(tl.float32))
        gained = tl.where(valid, gained, 0.0)
        totals += gained
        squares += gained * gained
        inside = first + lanes >= 0
        tl.store(reward_ptr + (begin + first) + lanes, reward, mask=inside)
        tl.store(return_ptr + (begin + first) + lanes, gained, mask=inside)
        valid, q, first = valid_next, q_next, first - BLOCK
    tl.store(moment_ptr + n * 3, tl.load(count_ptr + n).to(tl.float64))
    tl.store(moment_ptr + n * 3 + 1, tl.sum(totals.to(tl.float64), 0))
    tl.store(moment_ptr + n * 3 + 2, tl.sum(squares.to(tl.float64), 0))


@triton.jit
def _whiten_kernel(
    return_ptr, mask_ptr, moment_ptr, advantage_ptr, num_tokens, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(G - mean) / deviation from the global (count, sum, sum of squares); see reward_torch.whitening."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_tokens
    count, total, squares = tl.load(moment_ptr), tl.load(moment_ptr + 1), tl.load(moment_ptr + 2)
    mean = total / tl.maximum(count, 1.0)
    variance = tl.maximum(squares - total * mean, 0.0) / tl.maximum(count - 1.0, 1.0)
    scale = 1.0 / tl.sqrt(variance + EPS)
    valid = tl.load(mask_ptr + at, mask=inside, other=0) != 0
    value = (tl.load(return_ptr + at, mask=inside, other=0.0).to(tl.float64) - mean) * scale
    tl.store(advantage_ptr + at, tl.where(valid, value.to(tl.float32), 0.0), mask=inside)


def triton_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduction
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(process_rewards_T, returns_T, advantages_T); see reward.py for the steps. Never waits for the device."""
    num_tokens, num_sequences, where = batch.prm_logprobs_T.shape[0], batch.outcome_N.shape[0], batch.outcome_N.device
    mask_T = batch.response_mask_T.view(torch.uint8)
    peak_N, mean_N, count_N = torch.empty(3, num_sequences, device=where)
    last_N = torch.empty(num_sequences, dtype=torch.int64, device=where)
    floored = form.ratio_floor > 0.0
    log_floor = math.log(form.ratio_floor) if floored else 0.0
    if num_sequences:
        _scan_kernel[(num_sequences,)](
            batch.prm_logprobs_T, batch.ref_logprobs_T, mask_T, batch.cu_seqlens, peak_N, mean_N, count_N, last_N,
            form.scale, log_floor, FLOOR=floored, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    peak = peak_N
    if form.batch_norm:
        peak = reduce.max(peak_N.amax() if num_sequences else peak_N.new_zeros(()))
    rewards_T, returns_T = torch.empty(2, num_tokens, device=where)
    moments_N3 = torch.empty(num_sequences, 3, dtype=torch.float64, device=where)
    if num_sequences:
        _return_kernel[(num_sequences,)](
            batch.prm_logprobs_T, batch.ref_logprobs_T, mask_T, batch.cu_seqlens, batch.group_N, batch.outcome_N,
            mean_N, count_N, last_N, peak, rewards_T, returns_T, moments_N3, form.scale, log_floor,
            form.process_weight, form.outcome_weight, _log2(form.gamma_process), _log2(form.gamma_outcome),
            FLOOR=floored, NUM_SEQUENCES=num_sequences,
            BATCH_NORM=form.batch_norm, FORM=form.baseline, STD_EPS=STD_EPS, PLAIN_P=form.gamma_process == 1.0,
            PLAIN_O=form.gamma_outcome == 1.0, EPS=NORM_EPS, SIBLINGS=SIBLING_BLOCK, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    if not form.whiten:
        return rewards_T, returns_T, returns_T
    moments = reduce.sum(moments_N3.sum(0))
    advantages_T = torch.empty_like(returns_T)
    if num_tokens:
        _whiten_kernel[(triton.cdiv(num_tokens, WHITEN_BLOCK),)](
            returns_T, mask_T, moments, advantages_T, num_tokens, EPS=WHITEN_EPS, BLOCK=WHITEN_BLOCK,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return rewards_T, returns_T, advantages_T


def _log2(gamma: float) -> float:
    """log2 of a discount; 0 becomes a power so negative that any positive multiple of it vanishes."""
    return math.log2(gamma) if gamma > 0.0 else -1e4
