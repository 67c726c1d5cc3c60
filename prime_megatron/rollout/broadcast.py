"""Whole tensors from a trainer rank to an engine's workers over a process group of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ProcessGroupGloo, TCPStore

TIMEOUT = timedelta(seconds=300)
"""Longest wait for the other side to join or to send."""
Row = tuple[str, str, Sequence[int]]
"""A tensor's name, dtype and shape."""


def make_group(
    address: str, port: int, name: str, *, rank: int, world_size: int, store: TCPStore | None = None
) -> ProcessGroupGloo:
    """A gloo group beside whatever groups the process has; blocks until all ``world_size`` ranks are here."""
    if store is None:
        store = TCPStore(address, port, world_size, is_master=False, timeout=TIMEOUT)
    prefixed = dist.PrefixStore(name, store)
    return ProcessGroupGloo(prefixed, rank, world_size, TIMEOUT)


def receive_tensors(group: ProcessGroup, rows: Sequence[Row], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors that rank 0 sends as one uint8 tensor, back to back."""
    sizes = [torch.Size(shape).numel() * getattr(torch, dtype).itemsize for _, dtype, shape in rows]
    flat = torch.empty(sum(sizes), dtype=torch.uint8)
    group.broadcast(flat, 0).wait()
    offset = 0
    for (name, dtype, shape), size in zip(rows, sizes, strict=True):
        # A tensor of its own: the engine may read it at an alignment that the packed one does not have.
        yield name, flat[offset : offset + size].clone().view(getattr(torch, dtype)).view(tuple(shape)).to(device)
        offset += size


def send_flat(group: ProcessGroup, tensors: Sequence[Tensor]) -> None:
    """Rank 0's side of ``receive_tensors``."""
    flat = torch.cat([tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in tensors])
    group.broadcast(flat, 0).wait()
