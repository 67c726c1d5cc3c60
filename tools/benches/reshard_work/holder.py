"""An engine's driver that holds fused weights and generates nothing: what a weight sync costs without an engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from prime_megatron.families.engine_layout import fused_pieces, fused_shapes
from prime_megatron.parallel.shards import as_slices
from prime_megatron.rollout.engine import Request
from prime_megatron.rollout.process.driver import BroadcastGroup, DriverSettings, FinishedResponse
from prime_megatron.weights.buffer import TensorRow, open_buffer, unpack, wait_for_reads
from prime_megatron.weights.segment import bit_sums
from tools.benches.reshard_work.shapes import Shape


class HolderDriver:
    """See `Driver`; ``settings.extra`` is the model's `Shape`."""

    def __init__(self, settings: DriverSettings) -> None:
        shape = Shape(**settings.extra)
        dtype = getattr(torch, settings.dtype)
        self.params = {
            name: torch.zeros(size, dtype=dtype, device=settings.device)
            for name, size in fused_shapes(shape, 1).items()
        }
        self.destinations = {piece.hf_name: piece for piece in fused_pieces(shape, 1, 0)}

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        """See `Driver.load_bucket`."""
        flat = open_buffer(handles[0])
        for name, tensor in unpack(flat, rows):
            piece = self.destinations[name]
            self.params[piece.param][as_slices(piece.local)].copy_(tensor)
        wait_for_reads(flat)

    def bit_sums(self) -> list[dict[str, int]]:
        """See `Driver.bit_sums`."""
        return [bit_sums(self.params.items())]

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        """Nothing is asked of it."""

    def attach(self, paths: Sequence[str]) -> None:
        """Not this way."""

    def load_folder(self, path: str) -> None:
        """Not this way."""

    def join(self, group: BroadcastGroup) -> None:
        """Not this way."""

    def receive(self, rows: Sequence[TensorRow]) -> None:
        """Not this way."""

    def commit(self, version: int) -> None:
        """See `Driver.commit`."""

    def sleep(self, level: int) -> None:
        """See `Driver.sleep`."""

    def wake(self, tags: Collection[str]) -> None:
        """See `Driver.wake`."""

    def check(self) -> None:
        """See `Driver.check`."""

    def close(self) -> None:
        """See `Driver.close`."""
