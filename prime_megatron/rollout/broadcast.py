"""Whole tensors from a trainer rank to an engine's workers over a process group of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ProcessGroupGloo, TCPStore

from prime_megatron.rollout.shared_buffer import Row, rows_bytes, unpack

TIMEOUT = timedelta(seconds=300)
"""Longest wait for the other side to join or to send."""


def make_group(
    address: str, port: int, name: str, *, rank: int, world_size: int, store: TCPStore | None = None
) -> ProcessGroupGloo:
    """A gloo group beside whatever groups the process has; blocks until all ``world_size`` ranks are here."""
    if store is None:
        store = TCPStore(address, port, world_size, is_master=False, timeout=TIMEOUT)
    prefixed = dist.PrefixStore(name, store)
    return ProcessGroupGloo(prefixed, rank, world_size, TIMEOUT)


def receive_tensors(group: ProcessGroup, rows: Sequence[Row], device: torch.device) -> list[tuple[str, Tensor]]:
    """The tensors that rank 0 sends packed (``shared_buffer.pack``)."""
    flat = torch.empty(rows_bytes(rows), dtype=torch.uint8)
    group.broadcast(flat, 0).wait()
    return [(name, tensor.to(device)) for name, tensor in unpack(flat, rows)]


def send_flat(group: ProcessGroup, flat: Tensor) -> None:
    """Rank 0's side of ``receive_tensors``. flat: uint8, on the CPU."""
    group.broadcast(flat, 0).wait()
