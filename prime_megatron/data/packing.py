"""Which sequence goes where: mini-batches, data-parallel ranks, micro-batches.

The plan is pure Python on the lengths of all groups of the step, which every rank knows, so every rank computes
the same plan and needs no agreement. What it keeps (tests/unit/test_data_packing.py):
- each sequence is in exactly one micro-batch of one rank, siblings on the same rank and in the same mini-batch;
- mini-batches are runs of consecutive groups, sizes equal to within one group, whatever the layout;
- all data-parallel ranks have the same number of micro-batches in a mini-batch, a multiple of `micro_multiple`;
- a micro-batch keeps `max_tokens` and `max_sequences`, but for a single sequence longer than `max_tokens`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.data.balance import balanced_parts, greedy_parts
from prime_megatron.types import MicroBatches


@dataclass(frozen=True)
class MiniPlan:
    """One mini-batch over all data-parallel ranks."""

    groups: tuple[tuple[int, ...], ...]
    """Global group indices of each data-parallel rank."""
    micro: tuple[tuple[tuple[int, ...], ...], ...]
    """Per data-parallel rank, its micro-batches, as sequence indices into the rank's batch."""
    num_tokens: int
    """Valid response tokens over all ranks."""
    num_sequences: int
    """Sequences over all ranks."""


@dataclass(frozen=True)
class BatchPlan:
    """Where the groups of a step go. Sequences of a rank are numbered group by group in `groups_of(rank)`."""

    minis: tuple[MiniPlan, ...]
    """The finest mini-batches."""
    lengths: tuple[tuple[int, ...], ...]
    """Tokens of each sequence of each group."""
    dp_size: int
    max_tokens: int | None
    max_sequences: int | None
    micro_multiple: int

    @property
    def num_tokens(self) -> int:
        """Valid response tokens over all ranks."""
        return sum(mini.num_tokens for mini in self.minis)

    @property
    def num_sequences(self) -> int:
        """Sequences over all ranks."""
        return sum(mini.num_sequences for mini in self.minis)

    def groups_of(self, dp_rank: int) -> tuple[int, ...]:
        """Global group indices of a rank, in the order of its batch: mini-batch by mini-batch."""
        return tuple(group for mini in self.minis for group in mini.groups[dp_rank])

    def rank_tokens(self) -> list[int]:
        """Tokens, prompts included, of each data-parallel rank."""
        return [sum(sum(self.lengths[g]) for g in self.groups_of(rank)) for rank in range(self.dp_size)]

    def split(self, num_mini_batches: int) -> tuple[MiniPlan, ...]:
        """The same groups on the same ranks in fewer mini-batches, each the union of neighbours, packed afresh.

        Args:
            num_mini_batches: divides the number of the finest mini-batches.
        """
        assert len(self.minis) % num_mini_batches == 0, (len(self.minis), num_mini_batches)
        if num_mini_batches == len(self.minis):
            return self.minis
        width = len(self.minis) // num_mini_batches
        first = [0] * self.dp_size
        result = []
        for start in range(0, len(self.minis), width):
            parts = self.minis[start : start + width]
            groups = tuple(
                tuple(group for mini in parts for group in mini.groups[rank]) for rank in range(self.dp_size)
            )
            micro = _micro_batches(
                self.lengths, groups, first, self.max_tokens, self.max_sequences, self.micro_multiple
            )
            num_tokens = sum(mini.num_tokens for mini in parts)
            result.append(MiniPlan(groups, micro, num_tokens, sum(mini.num_sequences for mini in parts)))
        return tuple(result)

    def whole(self, lengths: Sequence[Sequence[int]]) -> MiniPlan:
        """All groups on the ranks where they are, as one mini-batch packed for sequences of these lengths."""
        groups = tuple(self.groups_of(rank) for rank in range(self.dp_size))
        limits = self.max_tokens, self.max_sequences, self.micro_multiple
        micro = _micro_batches(lengths, groups, [0] * self.dp_size, *limits)
        return MiniPlan(groups, micro, self.num_tokens, self.num_sequences)

    def micro_batches(self, dp_rank: int, num_mini_batches: int) -> tuple[MicroBatches, ...]:
        """What one role's training loop walks through on this rank; one mini-batch serves for scoring.

        Args:
            dp_rank: data-parallel rank.
            num_mini_batches: optimizer steps of the role; divides the plan's.
        """
        return tuple(
            MicroBatches(mini.micro[dp_rank], mini.num_tokens, mini.num_sequences)
            for mini in self.split(num_mini_batches)
        )


def plan_batch(
    lengths_by_group: Sequence[Sequence[int]],
    valid_tokens_by_group: Sequence[Sequence[int]],
    *,
    num_mini_batches: int,
    dp_size: int,
    max_tokens: int | None,
    max_sequences: int | None,
    micro_multiple: int = 1,
) -> BatchPlan:
    """Plan a step.

    Args:
        lengths_by_group: tokens, prompt included, of each sequence of each group, over all ranks.
        valid_tokens_by_group: response tokens of the same sequences.
        num_mini_batches: the finest split that any role needs; at most the number of groups.
        dp_size: data-parallel ranks.
        max_tokens: tokens of a micro-batch; a longer sequence stands alone; None: no limit.
        max_sequences: sequences of a micro-batch; None: no limit.
        micro_multiple: the number of micro-batches is a multiple of this (interleaved pipelines need it).
    """
    assert len(lengths_by_group) == len(valid_tokens_by_group)
    assert 1 <= num_mini_batches <= len(lengths_by_group), (num_mini_batches, len(lengths_by_group))
    assert dp_size >= 1 and micro_multiple >= 1
    lengths = tuple(tuple(group) for group in lengths_by_group)
    first = [0] * dp_size
    rank_load = [0] * dp_size
    minis = []
    for members in _consecutive(len(lengths), num_mini_batches):
        weights = [sum(lengths[group]) for group in members]
        groups: list[tuple[int, ...]] = [()] * dp_size
        # Heaviest part to the rank with the least so far: the whole step balances too.
        order = sorted(range(dp_size), key=lambda rank: (rank_load[rank], rank))
        for rank, part in zip(order, balanced_parts(weights, dp_size), strict=True):
            groups[rank] = tuple(members[i] for i in part)
            rank_load[rank] += sum(weights[i] for i in part)
        micro = _micro_batches(lengths, groups, first, max_tokens, max_sequences, micro_multiple)
        num_tokens = sum(sum(valid_tokens_by_group[group]) for group in members)
        minis.append(MiniPlan(tuple(groups), micro, num_tokens, sum(len(lengths[group]) for group in members)))
    return BatchPlan(tuple(minis), lengths, dp_size, max_tokens, max_sequences, micro_multiple)


def _consecutive(num_items: int, num_parts: int) -> list[range]:
    bounds = [num_items * part // num_parts for part in range(num_parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def _micro_batches(
    lengths: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    first: list[int],
    max_tokens: int | None,
    max_sequences: int | None,
    micro_multiple: int,
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Micro-batches of every rank for one mini-batch; moves `first`, each rank's next sequence index, on."""
    sizes_by_rank = [[size for group in rank for size in lengths[group]] for rank in groups]
    bins_by_rank = [_first_fit(sizes, max_tokens, max_sequences) for sizes in sizes_by_rank]
    needed = max(1, max(len(bins) for bins in bins_by_rank))
    count = -(-needed // micro_multiple) * micro_multiple
    result = []
    for rank, (sizes, bins) in enumerate(zip(sizes_by_rank, bins_by_rank, strict=True)):
        even = greedy_parts(sizes, count)
        if all(_fits(len(part), sum(sizes[i] for i in part), max_tokens, max_sequences) for part in even):
            bins = even
        bins = sorted((sorted(part) for part in bins), key=lambda part: (-sum(sizes[i] for i in part), part))
        bins += [[] for _ in range(count - len(bins))]
        result.append(tuple(tuple(first[rank] + i for i in part) for part in bins))
        first[rank] += len(sizes)
    return tuple(result)


def _fits(count: int, tokens: int, max_tokens: int | None, max_sequences: int | None) -> bool:
    """Whether so many sequences with so many tokens are within the limits; a single one always is."""
    if count <= 1:
        return True
    return (max_tokens is None or tokens <= max_tokens) and (max_sequences is None or count <= max_sequences)


def _first_fit(sizes: Sequence[int], max_tokens: int | None, max_sequences: int | None) -> list[list[int]]:
    """First-fit decreasing: few bins within the limits."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for index, part in enumerate(bins):
            if _fits(len(part) + 1, loads[index] + sizes[item], max_tokens, max_sequences):
                part.append(item)
                loads[index] += sizes[item]
                break
        else:
            bins.append([item])
            loads.append(sizes[item])
    return bins
