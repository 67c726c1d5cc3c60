"""Sums, means and scans within the sequences of a packed batch, and over the siblings of a group.

Shapes: T packed tokens, N sequences, G groups, K the largest group. ``index`` arguments give the segment of each
element. Sums are taken in float64 and rounded to the input's dtype at the end, so that packing, batch order and
layout do not show in the result. All functions accept empty inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sum of values [X] over equal index [X] (int64): [num_segments], the dtype of values; differentiable."""
    total = torch.zeros(num_segments, dtype=torch.float64, device=values.device)
    total = total.index_add(0, index, values.double())
    return total.to(values.dtype) if values.dtype.is_floating_point else total


def segment_count(mask: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """True elements of mask [X] per segment: float64 [num_segments]."""
    total = torch.zeros(num_segments, dtype=torch.float64, device=mask.device)
    return total.index_add(0, index, mask.double())


def segment_mean(values: Tensor, mask: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Mean of values where mask, per segment: [num_segments], the dtype of values; 0 for a segment without any."""
    total = segment_sum(torch.where(mask, values, 0.0).double(), index, num_segments)
    return (total / segment_count(mask, index, num_segments).clamp(min=1.0)).to(values.dtype)


def discounted_sum(values_T: Tensor, sequence_T: Tensor, gamma: float) -> Tensor:
    """G_t = sum over s >= t in the same sequence of gamma^(s - t) * values_s, for gamma in [0, 1]: [T].

    By doubling: after step k, out_t covers s - t < 2^k, so log2(longest) passes over [T], every factor at most 1 and
    no division. The exponent counts tokens, also those with value 0.
    """
    assert 0.0 <= gamma <= 1.0
    out = values_T.double().clone()
    if out.numel() == 0:
        return values_T.clone()
    longest = int(torch.bincount(sequence_T).max())
    shift, factor = 1, gamma
    while shift < longest:
        same = sequence_T[:-shift] == sequence_T[shift:]
        reach = torch.where(same, out[shift:], 0.0)
        out = torch.cat([out[:-shift] + factor * reach, out[-shift:]])
        shift, factor = 2 * shift, factor * factor
    return out.to(values_T.dtype)


def running_sum(values_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """sum over s <= t in the same sequence of values_s: [T]."""
    values = values_T.double()
    total_N = segment_sum(values, sequence_T, num_sequences)
    return (total_N[sequence_T] - discounted_sum(values, sequence_T, 1.0) + values).to(values_T.dtype)


def next_in_sequence(values_T: Tensor, sequence_T: Tensor) -> Tensor:
    """values_{t+1}, and 0 at the last token of a sequence: [T]."""
    if values_T.numel() == 0:
        return values_T.clone()
    same = sequence_T[:-1] == sequence_T[1:]
    return torch.cat([torch.where(same, values_T[1:], 0.0), torch.zeros_like(values_T[-1:])])


def last_index(mask_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """Packed index of the last token with mask in each sequence: int64 [N]; -1 where there is none."""
    position = torch.arange(mask_T.numel(), device=mask_T.device)
    position = torch.where(mask_T, position, -1)
    last = torch.full((num_sequences,), -1, dtype=torch.int64, device=mask_T.device)
    return last.scatter_reduce(0, sequence_T, position, reduce="amax")


def last_mask(mask_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """True at the last token with mask of each sequence: bool [T]."""
    last_N = last_index(mask_T, sequence_T, num_sequences)
    position = torch.arange(mask_T.numel(), device=mask_T.device)
    return mask_T & (last_N[sequence_T] == position)


@dataclass(frozen=True)
class Siblings:
    """The groups of a batch as a padded table; groups may differ in size, siblings need not be adjacent."""

    group_N: Tensor  # int64
    slot_N: Tensor  # int64, position among the siblings
    size_N: Tensor  # float64, number of siblings, the sequence itself included
    num_groups: int
    largest: int
    present_GK: Tensor  # bool, False is padding

    @staticmethod
    def of(group_N: Tensor) -> Siblings:
        """Table of group_N, int64 [N], values from 0; numbers that do not occur give empty groups."""
        num_groups = int(group_N.max()) + 1 if group_N.numel() else 0
        count_G = torch.bincount(group_N, minlength=num_groups)
        largest = int(count_G.max()) if num_groups else 0
        order_N = torch.argsort(group_N, stable=True)
        start_G = torch.cumsum(count_G, 0) - count_G
        rank_N = torch.arange(group_N.numel(), device=group_N.device) - start_G[group_N[order_N]]
        slot_N = torch.empty_like(group_N)
        slot_N[order_N] = rank_N
        present_GK = torch.arange(largest, device=group_N.device)[None, :] < count_G[:, None]
        return Siblings(group_N, slot_N, count_G[group_N].double(), num_groups, largest, present_GK)

    def table(self, values_N: Tensor) -> Tensor:
        """values [N] as [G, K], 0 in the padding."""
        table_GK = torch.zeros(self.num_groups, self.largest, dtype=values_N.dtype, device=values_N.device)
        table_GK[self.group_N, self.slot_N] = values_N
        return table_GK

    def sum(self, values_N: Tensor) -> Tensor:
        """Sum over the siblings, the sequence itself included, for every sequence: [N]."""
        return segment_sum(values_N, self.group_N, self.num_groups)[self.group_N]

    def mean_of_others(self, values_N: Tensor) -> Tensor:
        """Mean over the other siblings: [N]; 0 for a group of one, which has no others."""
        others_N = self.sum(values_N.double()) - values_N.double()
        mean_N = others_N / (self.size_N - 1.0).clamp(min=1.0)
        return torch.where(self.size_N > 1.0, mean_N, 0.0).to(values_N.dtype)
