"""Baselines over the siblings of a prompt: leave-one-out (RLOO) and z-score (GRPO).

K_g siblings in group g (groups may differ in size). A group of one has no siblings to compare with: its baseline is
0 and its scale 1, so its reward passes through as in REINFORCE; nothing divides by zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.segments import Siblings, segment_mean
from prime_megatron.config.algorithm import LeaveOneOut

STD_EPS = 1e-6


def outcome_leave_one_out(outcome_N: Tensor, siblings: Siblings) -> Tensor:
    """o_i - mean_{j != i} o_j: [N]."""
    return outcome_N - siblings.mean_of_others(outcome_N)


def token_leave_one_out(
    rewards_T: Tensor, mask_T: Tensor, sequence_T: Tensor, siblings: Siblings, form: LeaveOneOut
) -> Tensor:
    """Leave-one-out on token rewards, at mask tokens, 0 elsewhere: [T]. m_j is the mean of r^j over its mask.

    paper (equation 5): r_t^i - mean_{j != i} m_j.
    code: K/(K-1) * r_t^i - 1/(K-1) * sum_j m_j, the sum over all K; equal to paper's in the mean of a sequence, its
    deviations within the sequence are larger by K/(K-1).
    """
    mean_N = segment_mean(rewards_T, mask_T, sequence_T, siblings.size_N.numel())
    if form is LeaveOneOut.paper:
        centred_T = rewards_T - siblings.mean_of_others(mean_N)[sequence_T]
    else:
        alone_N = siblings.size_N <= 1.0
        others_N = (siblings.size_N - 1.0).clamp(min=1.0)
        gain_N = torch.where(alone_N, 1.0, siblings.size_N / others_N).to(rewards_T.dtype)
        base_N = torch.where(alone_N, 0.0, siblings.sum(mean_N.double()) / others_N).to(rewards_T.dtype)
        centred_T = gain_N[sequence_T] * rewards_T - base_N[sequence_T]
    return torch.where(mask_T, centred_T, 0.0)


def outcome_z_score(outcome_N: Tensor, siblings: Siblings, *, scaled: bool) -> Tensor:
    """(o_i - mean_j o_j) / (std_j o_j + 1e-6), Bessel-corrected over the group: [N]; not scaled: no division."""
    mean_N, std_N = _moments(outcome_N, siblings, scaled)
    return ((outcome_N.double() - mean_N) / std_N).to(outcome_N.dtype)


def token_z_score(rewards_T: Tensor, mask_T: Tensor, sequence_T: Tensor, siblings: Siblings, *, scaled: bool) -> Tensor:
    """(r_t - mean_j m_j) / (std_j m_j + 1e-6) at mask tokens, 0 elsewhere: [T] (paper, appendix B.3); not scaled: no
    division."""
    mean_N, std_N = _moments(segment_mean(rewards_T, mask_T, sequence_T, siblings.size_N.numel()), siblings, scaled)
    scored_T = (rewards_T.double() - mean_N[sequence_T]) / std_N[sequence_T]
    return torch.where(mask_T, scored_T, 0.0).to(rewards_T.dtype)


def _moments(values_N: Tensor, siblings: Siblings, scaled: bool) -> tuple[Tensor, Tensor]:
    """Mean and (deviation + eps; not scaled: 1) of each sequence's group, float64 [N]; (0, 1) for a group of one."""
    alone_N = siblings.size_N <= 1.0
    mean_N = siblings.sum(values_N.double()) / siblings.size_N
    square_N = siblings.sum((values_N.double() - mean_N) ** 2)
    std_N = (square_N / (siblings.size_N - 1.0).clamp(min=1.0)).sqrt() + STD_EPS
    return torch.where(alone_N, 0.0, mean_N), torch.where(alone_N, 1.0, std_N) if scaled else torch.ones_like(std_N)
