"""The definition of the reward path, a token at a time, in Python numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from prime_megatron.kernels.reward import Reduce, RewardBatch, RewardForm

NORM_EPS = 1e-6
WHITEN_EPS = 1e-8


def loop_advantages(
    batch: RewardBatch, form: RewardForm, reduce: Reduce
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(process_rewards_T, returns_T, advantages_T); see reward.py for the steps."""
    mask, edges, groups = batch.response_mask_T.tolist(), batch.cu_seqlens.tolist(), batch.group_N.tolist()
    prm, ref, outcomes = batch.prm_logprobs_T.tolist(), batch.ref_logprobs_T.tolist(), batch.outcome_N.tolist()
    ranges, where = list(pairwise(edges)), batch.prm_logprobs_T.device
    rewards, largest = [0.0] * len(mask), 0.0
    for begin, end in ranges:
        suffix = 0.0
        for t in reversed(range(begin, end)):
            if mask[t]:
                rewards[t] = form.scale * (prm[t] - ref[t])
                suffix += rewards[t]
                largest = max(largest, abs(suffix))
    if form.batch_norm:
        divisor = float(reduce.max(torch.tensor(largest, device=where))) + NORM_EPS
        rewards = [reward / divisor for reward in rewards]
    means = []
    for begin, end in ranges:
        valid = [rewards[t] for t in range(begin, end) if mask[t]]
        means.append(sum(valid) / max(len(valid), 1))
    returns = [0.0] * len(mask)
    for i, own in enumerate(groups):
        others = [j for j, group in enumerate(groups) if group == own and j != i]
        _returns(returns, rewards, mask, ranges[i], _baselines(means, outcomes, i, others, form), form)
    rewards_T, returns_T = torch.tensor(rewards, device=where), torch.tensor(returns, device=where)
    if not form.whiten:
        return rewards_T, returns_T, returns_T
    return rewards_T, returns_T, torch.tensor(_whitened(returns, mask, reduce, where), device=where)


def _baselines(
    means: list[float], outcomes: list[float], i: int, others: list[int], form: RewardForm
) -> tuple[float, float, float]:
    """(gain, base, outcome) of sequence i against its siblings: r~ = gain * r - base."""
    count = len(others) + 1
    if count == 1:
        return 1.0, 0.0, outcomes[i]
    outcome = outcomes[i] - sum(outcomes[j] for j in others) / (count - 1)
    total = sum(means[j] for j in others)
    if form.leave_one_out == "code":
        return count / (count - 1), (total + means[i]) / (count - 1), outcome
    return 1.0, total / (count - 1), outcome


def _returns(
    returns: list[float],
    rewards: list[float],
    mask: list[bool],
    span: tuple[int, int],
    baselines: tuple[float, float, float],
    form: RewardForm,
) -> None:
    """Fill in the returns of one sequence."""
    gain, base, outcome = baselines
    process, final, seen = 0.0, 0.0, False
    for t in reversed(range(*span)):
        process, final = form.gamma_process * process, form.gamma_outcome * final
        if mask[t]:
            process += form.process_weight * (gain * rewards[t] - base)
            if not seen:
                final, seen = form.outcome_weight * outcome, True
            returns[t] = process + final


def _whitened(returns: list[float], mask: list[bool], reduce: Reduce, where: torch.device) -> list[float]:
    valid = [value for value, inside in zip(returns, mask, strict=True) if inside]
    moments = torch.tensor(
        [float(len(valid)), sum(valid), sum(value * value for value in valid)], dtype=torch.float64, device=where
    )
    count, total, squares = reduce.sum(moments).tolist()
    mean = total / max(count, 1.0)
    scale = (max(squares - count * mean**2, 0.0) / max(count - 1.0, 1.0) + WHITEN_EPS) ** -0.5
    return [(value - mean) * scale if inside else 0.0 for value, inside in zip(returns, mask, strict=True)]
