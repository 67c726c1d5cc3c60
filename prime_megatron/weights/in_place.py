"""Sync into engine tensors that this process can reach: every byte is copied once, straight to its place.

What this rank holds itself is copied slice to slice. What another rank of the block holds arrives in bounded buckets,
sent to each rank that needs them, or broadcast where most of the block does; two buckets, so that one travels while
the other is packed or unpacked. What no other rank needs does not travel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.parallel.collectives import gather_all
from prime_megatron.types import Bucket
from prime_megatron.weights.check import fingerprint, same_bits
from prime_megatron.weights.plan import Message, ReshardPlan
from prime_megatron.weights.slices import Params, copy_slices, pairs, part


class LiveEngine(Protocol):
    """An engine whose tensors can be written in place (see rollout.engine)."""

    def named_targets(self) -> Mapping[str, Tensor] | None: ...

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None: ...

    def wake(self, tags: Collection[str]) -> None: ...


class InPlaceReshard:
    """A plan and its execution on one rank of the block.

    Args:
        plan: of the whole block; the same on all its ranks.
        group: the block, in the plan's order of ranks; None for a block of one.
        me: this rank's position in it.
        bucket_bytes: memory for what travels, both buckets together.
        dtype: what travels: the narrower of the trainer's and the engine's.
    """

    def __init__(
        self, plan: ReshardPlan, *, group: dist.ProcessGroup | None, me: int, bucket_bytes: int, dtype: torch.dtype
    ) -> None:
        assert group is not None or not plan.transfers, "parts of the model are on other ranks"
        self.group = group
        self.plan = plan
        self.dtype = dtype
        self.me = me
        self.local = plan.local[me]
        messages = plan.messages(max(1, bucket_bytes // dtype.itemsize // 2))
        self.size = len(plan.local)
        self.messages = [s for s in messages if self._is_broadcast(s) or me in (s.owner, *s.receivers)]

    def send(self, engine: LiveEngine, params: Params, version: int) -> None:
        """Write the current parameters into the engine's tensors and tell it so. Collective over the block."""
        targets = engine.named_targets()
        assert targets is not None
        self.run(params, targets)
        engine.update_weights((), version)

    @torch.no_grad()
    def run(self, params: Params, targets: Mapping[str, Tensor]) -> None:
        """Write the current parameters into the targets; values are cast where dtypes differ. Collective."""
        copy_slices(self.local, params, targets)
        if not self.messages:
            return
        device = next(iter(params.values())).device
        size = max(message.numel for message in self.messages)
        buffers = [torch.empty(size, dtype=self.dtype, device=device) for _ in self.messages[:2]]
        travelling: deque[tuple[list[dist.Work], Message, Tensor]] = deque()
        for index, message in enumerate(self.messages):
            if len(travelling) == len(buffers):
                self._arrive(*travelling.popleft(), targets)
            flat = buffers[index % len(buffers)][: message.numel]
            if message.owner == self.me:
                _pack(flat, message, params)
            travelling.append((self._start(flat, message), message, flat))
        for entry in travelling:
            self._arrive(*entry, targets)

    def differing(self, engine: LiveEngine, params: Params) -> list[str]:
        """Names of this block's engine tensors that are not the current parameters, bit for bit. Collective."""
        targets = engine.named_targets()
        assert targets is not None
        wrong = self.compare(params, targets)
        if self.group is None:
            return wrong
        return sorted({name for names in gather_all(wrong, self.group) for name in names})

    @torch.no_grad()
    def compare(self, params: Params, targets: Mapping[str, Tensor]) -> list[str]:
        """Names of this rank's targets that differ. Collective over the block."""
        names = [copy.target for copy in self.local]
        flags = [same_bits(of, to) for to, of in pairs(self.local, params, targets)]
        if self.plan.transfers:
            sent = self._fingerprints(params)
            for index, transfer in enumerate(self.plan.transfers):
                for place in transfer.destinations:
                    if self.me in place.ranks:
                        names.append(place.target)
                        flags.append(fingerprint(part(targets[place.target], place.to), self.dtype) == sent[index])
        if not flags:
            return []
        same = torch.stack(flags).tolist()
        return sorted({name for name, equal in zip(names, same, strict=True) if not equal})

    def _fingerprints(self, params: Params) -> Tensor:
        """Of every transfer, from its owner, int64 [transfers]."""
        device = next(iter(params.values())).device
        sums = torch.zeros(len(self.plan.transfers), dtype=torch.int64, device=device)
        for index, transfer in enumerate(self.plan.transfers):
            if transfer.owner == self.me:
                sums[index] = fingerprint(part(params[transfer.chunk, transfer.source], transfer.of), self.dtype)
        assert self.group is not None
        dist.all_reduce(sums, group=self.group)
        return sums

    def _is_broadcast(self, message: Message) -> bool:
        """Sending costs the owner once per receiver, a broadcast costs every rank of the block once."""
        return len(message.receivers) > 1 and 4 * (len(message.receivers) + 1) > 3 * self.size

    def _start(self, flat: Tensor, message: Message) -> list[dist.Work]:
        assert self.group is not None
        owner = dist.get_global_rank(self.group, message.owner)
        if self._is_broadcast(message):
            return [dist.broadcast(flat, owner, group=self.group, async_op=True)]
        if message.owner != self.me:
            return [dist.irecv(flat, owner, group=self.group)]
        receivers = [dist.get_global_rank(self.group, rank) for rank in message.receivers]
        return [dist.isend(flat, rank, group=self.group) for rank in receivers]

    def _arrive(self, works: list[dist.Work], message: Message, flat: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Wait for a bucket and put its transfers where they belong on this rank."""
        for work in works:
            work.wait()
        if self.me not in message.receivers:
            return
        offset = 0
        for transfer in message.transfers:
            for place in transfer.destinations:
                if self.me in place.ranks:
                    to = part(targets[place.target], place.to)
                    to.copy_(flat[offset : offset + transfer.numel].view(to.shape))
            offset += transfer.numel


def _pack(flat: Tensor, message: Message, params: Params) -> None:
    offset = 0
    for transfer in message.transfers:
        piece = part(params[transfer.chunk, transfer.source], transfer.of)
        flat[offset : offset + transfer.numel].view(piece.shape).copy_(piece)
        offset += transfer.numel
