"""A model's device memory: parameters, gradients and optimizer state, each on the device or away.

Tensors keep their identity and their views: only the storages behind them are emptied and filled again, so whatever
Megatron, DDP or the optimizer hold on to stays valid, and none of it may be read while it is away (on a CPU such a read
ends the process): what reads it asks ``HostCopy.need`` first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from prime_megatron.device import Mark
from prime_megatron.mcore.host_memory import HostPool, Region
from prime_megatron.mcore.optimizer_state import OptimizerState
from prime_megatron.mcore.storages import Block, aligned, bytes_of, drop, gradients, parameters, total

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
KINDS = (PARAMETERS, GRADIENTS, OPTIMIZER)


class RoleAway(RuntimeError):
    """A model was asked for what is not on the device."""


class HostCopy:
    """The memory of one role; on a CPU the moves are real copies, too.

    Gradients are never copied: every update starts from zeros, so they are dropped, and come back as zeros. A kind that
    has not changed since it was last copied is only dropped: a frozen role is copied once in its life.

    Args:
        name: the role's, for messages.
        chunks: its model chunks, wrapped or not.
        optimizer: megatron's optimizer; None for a frozen role.
        pool: where host memory comes from.
    """

    def __init__(self, name: str, chunks: Sequence[Any], optimizer: Any | None, pool: HostPool) -> None:
        self.name = name
        self.chunks = chunks
        self.optimizer = optimizer
        self.pool = pool
        self.state = OptimizerState(chunks, optimizer)
        self._regions: dict[str, Region] = {}
        self._away: dict[str, list[Block]] = {}
        self._changed = {PARAMETERS, OPTIMIZER}
        self._arriving: list[Mark] = []
        self.stepped = [0, 0]
        """Bytes that optimizer steps by pieces have copied to the device and to the host."""

    @property
    def here(self) -> frozenset[str]:
        """Kinds that are on the device."""
        return frozenset(KINDS) - self._away.keys()

    def need(self, *kinds: str) -> None:
        """Say that these kinds are read from here on: the computation waits for copies that are still under way.

        Raises:
            RoleAway: one of them is not on the device.
        """
        missing = [kind for kind in kinds if kind in self._away]
        if missing:
            raise RoleAway(f"{self.name}: {' and '.join(missing)} not on the device; bring that back first")
        for mark in self._arriving:
            mark.before_compute()
        self._arriving.clear()

    def changed(self, *kinds: str) -> None:
        """These kinds were written: their host copy is old."""
        self._changed.update(kinds)

    def device_bytes(self) -> Mapping[str, int]:
        """Bytes on the device by kind; 0 for one that is away."""
        return {kind: 0 if kind in self._away else total(self._blocks(kind)) for kind in KINDS}

    def host_bytes(self) -> Mapping[str, int]:
        """Host memory held by kind, whole pages; it stays while the role is on the device."""
        return {kind: self._regions[kind].nbytes if kind in self._regions else 0 for kind in KINDS}

    def reserve(self) -> None:
        """Take the host memory that moves will need, with room for Adam's moments before there are any."""
        for kind in (PARAMETERS, OPTIMIZER):
            self._region(kind)

    @torch.no_grad()
    def send(self, kinds: Collection[str]) -> int:
        """Free these kinds' device memory; what has changed is copied first. Returns the bytes copied.

        The copies run beside the computation, and the memory is free for others once they are done.
        """
        copied = 0
        for kind in KINDS:
            if kind not in kinds or kind in self._away:
                continue
            self.need(kind)
            if kind == GRADIENTS and self.optimizer is not None:
                self.optimizer.zero_grad()  # the optimizer's parameters refer to slices of what goes now
            if kind == OPTIMIZER:
                self.state.separate()
            blocks = self._blocks(kind)
            if kind in self._changed:
                self.copy_out(blocks, kind)
                self._changed.discard(kind)
                copied += total(blocks)
            self._away[kind] = blocks
            drop(blocks)
        return copied

    @torch.no_grad()
    def bring(self, kinds: Collection[str]) -> int:
        """Queue the way back of these kinds; returns the bytes copied. ``need`` comes before their first use."""
        copied = 0
        for kind in KINDS:
            if kind not in kinds or kind not in self._away:
                continue
            blocks = self._away.pop(kind)
            if kind == GRADIENTS:
                for block in blocks:
                    block.storage.resize_(block.nbytes)
                    bytes_of(block.storage).zero_()
                continue
            if kind == OPTIMIZER:
                blocks = self._blocks(kind)  # moments may have appeared in a step by pieces
            self._arriving.append(self.copy_in(blocks, kind))
            copied += total(blocks)
        return copied

    def take_stepped(self) -> tuple[int, int]:
        """``stepped`` since the last call."""
        (arrived, left), self.stepped = self.stepped, [0, 0]
        return arrived, left

    def settle(self) -> None:
        """Wait until what was sent is in host memory, and its device memory free."""
        self.pool.departures.mark().wait()

    def copy_out(self, blocks: Sequence[Block], kind: str) -> Mark:
        """Queue copies to the host."""
        region, queue = self._region(kind), self.pool.departures
        with queue.after_compute():
            for block in blocks:
                source = bytes_of(block.storage)
                region.write(block.start, source)
                queue.holds(source)
        return queue.mark()

    def copy_in(self, blocks: Sequence[Block], kind: str) -> Mark:
        """Take device memory and queue copies from the host into it."""
        region, queue = self._regions[kind], self.pool.arrivals
        for block in blocks:
            block.storage.resize_(block.nbytes)
        queue.after(self.pool.departures.mark())  # what is to be copied may still be on its way out
        with queue.after_compute():
            for block in blocks:
                region.read(block.start, bytes_of(block.storage))
        return queue.mark()

    def _blocks(self, kind: str) -> list[Block]:
        """Every storage of a kind once; of optimizer state the sizes that it has, or would have, on the device."""
        if kind == OPTIMIZER:
            return self.state.all()
        blocks: list[Block] = []
        seen: set[int] = set()
        for tensor in parameters(self.chunks) if kind == PARAMETERS else gradients(self.chunks):
            storage = tensor.untyped_storage()
            if storage._cdata in seen or storage.nbytes() == 0:
                continue
            seen.add(storage._cdata)
            start = aligned(blocks[-1].start + blocks[-1].nbytes) if blocks else 0
            blocks.append(Block(storage, start, storage.nbytes()))
        return blocks

    def _region(self, kind: str) -> Region:
        if kind not in self._regions:
            if kind == OPTIMIZER:
                size = self.state.nbytes
            else:
                size = max((block.start + block.nbytes for block in self._blocks(kind)), default=0)
            self._regions[kind] = self.pool.take(size, f"{self.name} ({kind})")
        return self._regions[kind]
