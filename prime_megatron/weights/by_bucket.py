"""Sync into engines that take whole tensors by Hugging Face name, in buckets of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.distributed as dist

from prime_megatron.families.engine_layout import whole_tensors
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.types import Bucket
from prime_megatron.weights.in_place import InPlaceReshard
from prime_megatron.weights.plan import hold, plan_block
from prime_megatron.weights.slices import Params


class NamedEngine(Protocol):
    """An engine that takes buckets (see rollout.engine)."""

    @property
    def version(self) -> int: ...

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None: ...


@dataclass(frozen=True)
class _Part:
    """One bucket: its tensors and how they are filled."""

    tensors: tuple[ShardSlice, ...]
    fill: InPlaceReshard
    numel: int


class BucketReshard:
    """Whole tensors on the ranks that need them, a bucket at a time.

    A receiving rank holds one bucket at a time, and as much again for what travels.

    Args:
        sources: pieces held by each rank of the block, in group order.
        receivers: ranks of the block whose engine takes buckets; the others only give.
        group: the block; None for a block of one.
        me: this rank's position in it.
        bucket_bytes: largest bucket (a larger tensor goes alone).
        dtype: of the tensors in the buckets; values are cast.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[ShardSlice]],
        receivers: Sequence[int],
        *,
        group: dist.ProcessGroup | None,
        me: int,
        bucket_bytes: int,
        dtype: torch.dtype,
    ) -> None:
        held = hold(sources)
        self.group = group
        self.dtype = dtype
        self.receives = me in receivers
        self.parts: list[_Part] = []
        every = whole_tensors(piece for pieces in sources for piece in pieces)
        for tensors in _cut(every, bucket_bytes // dtype.itemsize):
            wants = [tensors if rank in receivers else () for rank in range(len(sources))]
            plan = plan_block(held, wants)
            fill = InPlaceReshard(plan, group=group, me=me, bucket_bytes=bucket_bytes, dtype=dtype)
            self.parts.append(_Part(tensors, fill, sum(prod(tensor.shape) for tensor in tensors)))

    def send(self, engine: NamedEngine, params: Params, version: int) -> None:
        """Feed the engine all buckets, and all again when one of the block died over them. Collective over the block.

        An engine on a rank that does not receive sees equally many buckets, all empty: making one is collective.
        """
        lacking = True
        while lacking:
            buckets = self.buckets(params, version)
            engine.update_weights(buckets, version)
            assert next(buckets, None) is None, "the engine left buckets behind; its peers wait for this rank's parts"
            lacking = engine.version != version
            if self.group is not None:
                lacking = any(gather_all(lacking, self.group))

    def buckets(self, params: Params, version: int) -> Iterator[Bucket]:
        """Every bucket of the current parameters, each made when it is asked for; collective, every rank takes all.

        On a rank that does not receive, buckets are empty.
        """
        device = next(iter(params.values())).device
        for entry in self.parts:
            flat = torch.empty(entry.numel if self.receives else 0, dtype=self.dtype, device=device)
            targets = {}
            offset = 0
            for tensor in entry.tensors if self.receives else ():
                targets[tensor.param] = flat[offset : offset + prod(tensor.shape)].view(tensor.shape)
                offset += prod(tensor.shape)
            entry.fill.run(params, targets)
            yield Bucket(list(targets), list(targets.values()), version)

    def differing(self, engine: NamedEngine, params: Params) -> list[str]:
        """Nothing: this engine's tensors cannot be read from here; it checks its own answers."""
        return []


def _cut(tensors: Sequence[ShardSlice], limit: int) -> Iterator[tuple[ShardSlice, ...]]:
    pending: list[ShardSlice] = []
    size = 0
    for tensor in tensors:
        numel = prod(tensor.shape)
        if pending and size + numel > limit:
            yield tuple(pending)
            pending, size = [], 0
        pending.append(tensor)
        size += numel
    if pending:
        yield tuple(pending)
