"""Megatron's flat buffers of a trained model, element by element: where every parameter lies in them, what is padding,
and which part of each the ranks of the distributed optimizer own (_ParamAndGradBuffer and DistributedOptimizer of
megatron-core 0.16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import ParallelConfig
from prime_megatron.families.count import ChunkParameters, RankParameters
from prime_megatron.parallel.topology import ParallelSizes

PARAM_ALIGN = 64
BUCKET_ALIGN = 128
BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK = 40_000_000, 1_000_000
"""A bucket closes at the larger of both, the second times the data-parallel ranks."""


@dataclass(frozen=True)
class Flat:
    """One buffer, or several together."""

    numel: int
    """Elements, padding included."""
    shards: tuple[int, ...]
    """Elements of parameters, not of padding, in the part that each rank owns."""

    def __add__(self, other: Flat) -> Flat:
        shards = tuple(a + b for a, b in zip(self.shards, other.shards, strict=True))
        return Flat(self.numel + other.numel, shards)


@dataclass(frozen=True)
class Buffers:
    """All buffers of a rank's model."""

    dense: Flat
    """Its shards in the order of the data- and context-parallel ranks."""
    experts: Flat
    """Its shards in the order of the expert-data-parallel ranks."""

    @property
    def numel(self) -> int:
        return self.dense.numel + self.experts.numel


def buffers_of(params: RankParameters, parallel: ParallelConfig, sizes: ParallelSizes) -> Buffers:
    """The buffers of a rank with these parameters, whose optimizer is the distributed one."""
    ranks = sizes.data * sizes.context
    dense, experts = Flat(0, (0,) * ranks), Flat(0, (0,) * sizes.expert_data)
    for index, chunk in enumerate(params.chunks):
        bucket = None
        if parallel.overlap_grad_reduce and params.stage == 0 and index == 0:
            bucket = max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK * sizes.data)
        dense += _flat(chunk.dense, _copied(chunk), ranks, bucket)
        experts += _flat(chunk.experts, None, sizes.expert_data, bucket)
    return Buffers(dense, experts)


def _copied(chunk: ChunkParameters) -> int | None:
    """Its place when the parameters are gone through from the last to the first."""
    return None if chunk.copied is None else len(chunk.dense) - 1 - chunk.copied


def _flat(params: Sequence[int], alone: int | None, ranks: int, bucket: int | None) -> Flat:
    """Megatron lays parameters out from the last to the first, each at a multiple of 64 elements, in buckets that end
    at a multiple of 128 and of the ranks, each of which owns an equal part of every bucket.

    alone: which of them, counted from the last, has a bucket of its own. bucket: elements at which one closes.
    """
    divisor = math.lcm(ranks, BUCKET_ALIGN)
    shards = [0] * ranks
    start = end = 0
    spans: list[tuple[int, int]] = []

    def close() -> int:
        """The bucket's padded end."""
        stop = -(-end // divisor) * divisor
        size = (stop - start) // ranks
        for first, last in spans:
            for rank in range((first - start) // size, (last - 1 - start) // size + 1):
                shards[rank] += min(last, start + (rank + 1) * size) - max(first, start + rank * size)
        spans.clear()
        return stop

    for index, numel in enumerate(reversed(params)):
        if index == alone and spans:
            start = end = close()
        first = -(-end // PARAM_ALIGN) * PARAM_ALIGN
        end = first + numel
        spans.append((first, end))
        if index == alone or (bucket is not None and end - start >= bucket):
            start = end = close()
    if spans:
        end = close()
    return Flat(end, tuple(shards))
