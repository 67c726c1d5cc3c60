"""A tracker behind a queue and a thread: a server that is slow, dead or gone costs the run nothing but a warning."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from prime_megatron.metrics.jsonl import plain
from prime_megatron.metrics.sinks import FileSink
from prime_megatron.metrics.trackers import Tracker, finite

MAX_WAITING = 1000
"""Steps that wait for a tracker; what comes on top is dropped."""
CLOSE_S = 30.0
"""Longest wait for a tracker at the end of the run."""


class BackgroundSink(FileSink):
    """Hands each step's numbers to a tracker in a thread of its own. A step that it does not take is dropped, the next
    one is tried; the first failure is told, and at the end how many steps it lacks.

    Args:
        tracker: where the numbers go.
        warn: tells the user; called in the thread that logs.
        close_s: longest wait at the end.
        max_waiting: steps that may wait.
    """

    def __init__(
        self,
        tracker: Tracker,
        warn: Callable[[str], None],
        close_s: float = CLOSE_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._tracker = tracker
        self._warn = warn
        self._close_s = close_s
        self._steps: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(max_waiting)
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None
        """The first failure."""
        self._told = False
        self._given = self._taken = 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._thread is None:
            # Daemon: a process that ends does not wait for a server that does not answer.
            self._thread = threading.Thread(target=self._serve, name=f"log to {self._tracker.name}", daemon=True)
            self._thread.start()
        self._given += 1
        try:
            self._steps.put_nowait((step, finite({key: plain(value, key) for key, value in values.items()})))
        except queue.Full:
            self._trouble = self._trouble or f"{self._steps.maxsize} steps wait for it"
        self._tell()

    def restore(self, step: int) -> None:
        assert self._thread is None, "restore comes before the first log"
        self._tracker.restore(step)

    def close(self) -> None:
        """Wait for what is on its way, for a while."""
        if self._thread is None:
            return
        try:
            self._steps.put(None, timeout=self._close_s)
        except queue.Full:
            pass
        else:
            self._thread.join(self._close_s)
        self._tell()
        if self._thread.is_alive():
            self._warn(f"{self._tracker.name} did not take the last figures within {self._close_s:g} s; the run ends")
        if lacking := self._given - self._taken:
            self._warn(f"{self._tracker.name} lacks {lacking} of {self._given} steps; metrics.jsonl has all of them")

    def _tell(self) -> None:
        if self._trouble is not None and not self._told:
            self._told = True
            self._warn(f"{self._tracker.name}: {self._trouble}; the run goes on, and metrics.jsonl has every figure")

    def _serve(self) -> None:
        while (item := self._steps.get()) is not None:
            try:
                self._tracker.log(*item)
                self._taken += 1
            except Exception as error:
                self._fail(error)
        try:
            self._tracker.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        self._trouble = self._trouble or f"{type(error).__name__}: {first_line[:200]}"
