"""Sync into an engine whose tensors this process can reach: every byte is copied once, straight to its place.

What this rank holds itself is copied slice to slice. What another rank of the model-parallel block holds arrives in
bounded buckets that its owner broadcasts; the receiver copies each slice from the bucket into the engine's tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.reshard.plan import Copy, plan_copies

Params = Mapping[tuple[int, str], Tensor]
"""This rank's training parameters by (chunk, name)."""


@dataclass(frozen=True)
class Shipment:
    """What one owner broadcasts at once: its slices, back to back."""

    owner: int
    copies: tuple[Copy, ...]
    numel: int


class LocalSync:
    """The plan of this rank and its execution.

    Args:
        sources: pieces held by each rank of the model-parallel block, in group order.
        targets: pieces this engine rank wants.
        group: the block; None for a block of one.
        me: this rank's position in the block.
        bucket_bytes: largest broadcast.
        itemsize: bytes of a training element.

    Attributes:
        owned: copies whose source this rank speaks for; over the block each target element appears once.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[ShardSlice]],
        targets: Sequence[ShardSlice],
        *,
        group: dist.ProcessGroup | None,
        me: int,
        bucket_bytes: int,
        itemsize: int,
    ) -> None:
        self.group = group
        self.me = me
        # Every rank wants the same pieces here, so the plan without a preference says who ships what to the others;
        # a replicated piece that this rank holds too is taken from itself.
        common = plan_copies(sources, targets)
        self.local = [copy for copy in plan_copies(sources, targets, prefer=me) if copy.rank == me]
        mine = {(copy.target, copy.to) for copy in self.local}
        self.owned = [copy for copy in common if copy.rank == me]
        self.remote = {id(copy) for copy in common if (copy.target, copy.to) not in mine}
        self.shipments = _cut(common, bucket_bytes // itemsize) if len(sources) > 1 else []

    @torch.no_grad()
    def run(self, params: Params, targets: Mapping[str, Tensor]) -> None:
        """Write the current parameters into the engine's tensors. Collective over the block."""
        for copy in self.local:
            targets[copy.target][as_slices(copy.to)].copy_(params[copy.chunk, copy.source][as_slices(copy.of)])
        if not self.shipments:
            return
        like = next(iter(params.values()))
        buffer = torch.empty(max(s.numel for s in self.shipments), dtype=like.dtype, device=like.device)
        for shipment in self.shipments:
            flat = buffer[: shipment.numel]
            if shipment.owner == self.me:
                _pack(flat, shipment, params)
            assert self.group is not None
            dist.broadcast(flat, dist.get_global_rank(self.group, shipment.owner), group=self.group)
            if shipment.owner != self.me:
                self._unpack(flat, shipment, targets)

    def _unpack(self, flat: Tensor, shipment: Shipment, targets: Mapping[str, Tensor]) -> None:
        offset = 0
        for copy in shipment.copies:
            if id(copy) in self.remote:
                place = targets[copy.target][as_slices(copy.to)]
                place.copy_(flat[offset : offset + copy.numel].view(place.shape))
            offset += copy.numel


def _pack(flat: Tensor, shipment: Shipment, params: Params) -> None:
    offset = 0
    for copy in shipment.copies:
        piece = params[copy.chunk, copy.source][as_slices(copy.of)]
        flat[offset : offset + copy.numel].view(piece.shape).copy_(piece)
        offset += copy.numel


def _cut(copies: Sequence[Copy], limit: int) -> list[Shipment]:
    """Group an owner's copies into shipments of at most ``limit`` elements (a larger copy ships alone)."""
    shipments: list[Shipment] = []
    pending: list[Copy] = []
    size = 0
    for copy in copies:
        if pending and (copy.rank != pending[0].rank or size + copy.numel > limit):
            shipments.append(Shipment(pending[0].rank, tuple(pending), size))
            pending, size = [], 0
        pending.append(copy)
        size += copy.numel
    if pending:
        shipments.append(Shipment(pending[0].rank, tuple(pending), size))
    return shipments
