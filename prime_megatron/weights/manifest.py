"""What one update must bring an engine: every tensor of its model, once, in its shape; and the checksums afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.types import Bucket
from prime_megatron.weights.segment import bit_sum

EngineLayout = Sequence[Sequence[ShardSlice]]
"""What each tensor-parallel rank of the engine holds."""


class Manifest:
    """Names, shapes and checksums of the tensors of one engine.

    Args:
        layout: of the engine.
        dtype: of the engine's weights.
        check_every: checksums are due every n updates, and at the first one of an engine process; 0: never.
    """

    def __init__(self, layout: EngineLayout, dtype: torch.dtype, check_every: int) -> None:
        self.num_ranks = len(layout)
        self._dtype, self._check_every = dtype, check_every
        self._pieces: dict[str, list[tuple[int, ShardSlice]]] = {}
        """Where a Hugging Face tensor goes: engine rank and piece."""
        for rank, pieces in enumerate(layout):
            for piece in pieces:
                self._pieces.setdefault(piece.hf_name, []).append((rank, piece))
        self._sent: set[str] = set()
        self._sums: list[dict[str, Tensor]] = []
        self._num_updates = 0
        self._proven = False

    @property
    def due(self) -> bool:
        """Whether this update's checksums are compared."""
        every = self._check_every
        return every > 0 and (not self._proven or (self._num_updates + 1) % every == 0)

    def forget(self) -> None:
        """Another engine process: nothing is proven of it."""
        self._proven = False

    def begin(self) -> None:
        """A new update starts."""
        self._sent, self._sums = set(), [{} for _ in range(self.num_ranks)]

    def take(self, bucket: Bucket) -> None:
        """Note a bucket. Raises RunError for a tensor that the model does not have, or has in another shape."""
        for name, tensor in zip(bucket.names, bucket.tensors, strict=True):
            if name not in self._pieces:
                raise RunError(f"weight sync: the engine's model has no tensor {name}")
            shape = self._pieces[name][0][1].hf_shape
            if tuple(tensor.shape) != tuple(shape):
                raise RunError(f"weight sync: {name} is {list(tensor.shape)}, the engine's model has {list(shape)}")
            if self.due:
                self._count(name, tensor)
        self._sent |= set(bucket.names)

    def complete(self, version: int) -> None:
        """Every tensor came. Raises RunError with one that did not."""
        missing = sorted(self._pieces.keys() - self._sent)
        if missing:
            raise RunError(
                f"weight sync of version {version}: {len(missing)} tensors are missing, such as {missing[0]}"
            )

    def sums(self) -> list[dict[str, int]]:
        """Checksums (``live_weights.bit_sums``) that every engine rank's parameters must have after this update."""
        return [{name: int(total) for name, total in sums.items()} for sums in self._sums]

    def end(self) -> None:
        """The update is done, and its checksums were right where they were due."""
        self._proven = self._proven or self.due
        self._num_updates += 1

    def _count(self, name: str, tensor: Tensor) -> None:
        for rank, piece in self._pieces[name]:
            sums = self._sums[rank]
            total = bit_sum(tensor[as_slices(piece.hf)].to(self._dtype))
            sums[piece.param] = total if piece.param not in sums else sums[piece.param] + total


def compare(expected: Sequence[dict[str, int]], got: Sequence[dict[str, int]], version: int) -> None:
    """Raise RunError with the first tensor whose bits differ between trainer and engine."""
    assert len(expected) == len(got), "one set of checksums per tensor-parallel rank"
    for rank, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        names = [name for name in sorted(theirs) if name not in ours or ours[name] != theirs[name]]
        names += sorted(ours.keys() - theirs.keys())
        if names:
            raise RunError(
                f"weight sync of policy version {version}: {len(names)} tensors of engine rank {rank} differ from "
                f"the trainer's, the first is {names[0]}"
            )
