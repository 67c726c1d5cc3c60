"""The definition of the reward path, a token at a time, as the public codes write it."""

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
    mask_T, edges = batch.response_mask_T, batch.cu_seqlens.tolist()
    ranges = list(pairwise(edges))
    rewards_T = torch.zeros_like(batch.prm_logprobs_T)
    largest = rewards_T.new_zeros(())
    for begin, end in ranges:
        suffix = rewards_T.new_zeros(())
        for t in reversed(range(begin, end)):
            if mask_T[t]:
                rewards_T[t] = form.scale * (batch.prm_logprobs_T[t] - batch.ref_logprobs_T[t])
                suffix = suffix + rewards_T[t]
                largest = torch.maximum(largest, suffix.abs())
    if form.batch_norm:
        rewards_T = rewards_T / (reduce.max(largest) + NORM_EPS)
    returns_T = torch.zeros_like(rewards_T)
    groups = batch.group_N.tolist()
    for i, own in enumerate(groups):
        siblings = [j for j, group in enumerate(groups) if group == own]
        _returns(returns_T, rewards_T, mask_T, [ranges[j] for j in siblings], batch.outcome_N[siblings],
                 siblings.index(i), form)  # fmt: skip
    if not form.whiten:
        return rewards_T, returns_T, returns_T
    return rewards_T, returns_T, _whitened(returns_T, mask_T, reduce)


def _returns(
    returns_T: torch.Tensor,
    rewards_T: torch.Tensor,
    mask_T: torch.Tensor,
    ranges: list[tuple[int, int]],
    outcome_K: torch.Tensor,
    own: int,
    form: RewardForm,
) -> None:
    """Fill in the returns of sequence `own` of a group."""
    count = len(ranges)
    means = [rewards_T[a:b][mask_T[a:b]].sum() / mask_T[a:b].sum().clamp(min=1) for a, b in ranges]
    gain, base, outcome = 1.0, 0.0, outcome_K[own]
    if count > 1:
        if form.leave_one_out == "code":
            gain, base = count / (count - 1), sum(means) / (count - 1)
        else:
            base = sum(m for j, m in enumerate(means) if j != own) / (count - 1)
        outcome = outcome - sum(o for j, o in enumerate(outcome_K) if j != own) / (count - 1)
    begin, end = ranges[own]
    process, final, seen = rewards_T.new_zeros(()), rewards_T.new_zeros(()), False
    for t in reversed(range(begin, end)):
        process, final = form.gamma_process * process, form.gamma_outcome * final
        if mask_T[t]:
            process = process + form.process_weight * (gain * rewards_T[t] - base)
            if not seen:
                final, seen = form.outcome_weight * outcome, True
            returns_T[t] = process + final


def _whitened(returns_T: torch.Tensor, mask_T: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    valid = returns_T[mask_T].double()
    count, total, squares = reduce.sum(torch.stack((mask_T.sum().double(), valid.sum(), valid.square().sum())))
    mean = total / count.clamp(min=1)
    variance = (squares - count * mean**2).clamp(min=0) / (count - 1).clamp(min=1)
    return torch.where(mask_T, (returns_T - mean) / torch.sqrt(variance + WHITEN_EPS), 0.0).float()
