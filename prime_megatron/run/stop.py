"""Whether this attempt is to end early with its state saved: a signal, or the wall-clock limit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from prime_megatron.config import CheckpointConfig
from prime_megatron.device import current_device
from prime_megatron.run.signals import heard


class Stop:
    """A signal only sets a flag; ranks agree on it at points where all of them pass.

    Args:
        config: the signal (besides TERM) and the wall-clock limit.
        now: the clock, in seconds; the limit counts from here.
    """

    def __init__(self, config: CheckpointConfig, now: Callable[[], float] = time.monotonic) -> None:
        self._signals = {signal.SIGTERM, signal.Signals[f"SIG{config.signal}"]}
        self._now = now
        self._limit_s = config.wall_limit_s
        self._began = now()
        self._signalled: float | None = None
        self.reason = ""
        """Why, once `requested` was true."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hear the signals within the block; in the main thread."""
        with heard(self._signals, self._note):
            yield

    def requested(self) -> bool:
        """Whether this rank was asked to stop; others may not know yet."""
        if self._signalled is not None:
            return True
        if self._limit_s is not None and self._now() - self._began >= self._limit_s:
            self.reason = f"the wall-clock limit of {self._limit_s:g} s is reached"
            return True
        return False

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; the same answer on every rank. Collective over the world."""
        wanted = torch.tensor([float(self.requested())], device=current_device())
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        return bool(wanted.item())

    def waiting_s(self) -> float:
        """Seconds since the signal came; 0 without one."""
        return 0.0 if self._signalled is None else self._now() - self._signalled

    def forgive(self, seconds: float) -> None:
        """Do not count this time, in which the process was suspended, as waiting."""
        if self._signalled is not None:
            self._signalled = min(self._now(), self._signalled + seconds)

    def _note(self, number: signal.Signals) -> None:
        if self._signalled is None:
            self.reason = f"{number.name} was received"
            self._signalled = self._now()
