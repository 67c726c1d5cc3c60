"""Whole tensors from a trainer rank to an engine's workers over a process group of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ProcessGroupGloo, TCPStore

from prime_megatron.weights.buffer import TensorRow, rows_bytes, unpack

TIMEOUT = timedelta(seconds=300)
"""Longest wait for the other side to join or to send."""
POLL_S = 0.05
"""Longest time between two looks at the other side."""


def make_group(
    address: str, port: int, name: str, *, rank: int, world_size: int, store: TCPStore | None = None
) -> ProcessGroupGloo:
    """A gloo group beside whatever groups the process has; blocks until all ``world_size`` ranks are here."""
    if store is None:
        store = TCPStore(address, port, world_size, is_master=False, timeout=TIMEOUT)
    prefixed = dist.PrefixStore(name, store)
    return ProcessGroupGloo(prefixed, rank, world_size, TIMEOUT)


def lead_group(store: TCPStore, name: str, world_size: int, check: Callable[[], None]) -> ProcessGroupGloo:
    """``make_group`` for rank 0, which owns the store. ``check`` is called meanwhile; what it raises ends the wait."""
    made: Future[ProcessGroupGloo] = Future()

    def make() -> None:
        try:
            made.set_result(make_group("", 0, name, rank=0, world_size=world_size, store=store))
        except Exception as error:
            made.set_exception(error)

    # Nothing calls gloo off: a wait that is given up ends in its own time and blocks nothing.
    threading.Thread(target=make, daemon=True).start()
    while not wait([made], timeout=POLL_S).done:
        check()
    return made.result()


def receive_tensors(group: ProcessGroup, rows: Sequence[TensorRow], device: torch.device) -> list[tuple[str, Tensor]]:
    """The tensors that rank 0 sends packed (``shared_buffer.pack``)."""
    flat = torch.empty(rows_bytes(rows), dtype=torch.uint8)
    group.broadcast(flat, 0).wait()
    return [(name, tensor.to(device)) for name, tensor in unpack(flat, rows)]


def send_flat(group: ProcessGroup, flat: Tensor, check: Callable[[], None]) -> None:
    """Rank 0's side of ``receive_tensors``. flat: uint8, on the CPU. check: as for ``lead_group``."""
    work = group.broadcast(flat, 0)
    pause_s = POLL_S / 100
    while not work.is_completed():
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_S)
        check()
    work.wait()
