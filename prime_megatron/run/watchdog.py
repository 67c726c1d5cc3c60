"""Ends a process that gets nowhere: a stage that stalls, a stop that outlasts its grace time."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prime_megatron.errors import ExitCode
from prime_megatron.run.siblings import stopped_ranks
from prime_megatron.run.stop import Stop

STALL_FOLDER = "stalls"
"""Below run.output_dir: a file with the stacks of every rank."""
OTHERS_S = 20.0
"""Longest wait for the other ranks' stacks before this one ends the run."""
SUSPENDED_S = 2.0
"""A watch that sleeps this much longer than it asked for was stopped together with its process."""


class Watchdog:
    """A thread beside the training; `beat` is called at both ends of every stage.

    Args:
        folder: where the stacks go.
        rank, world: of this process.
        stall_timeout_s: longest time between two beats.
        grace_s: longest time between a stop signal and the start of the save.
        stop: the run's stop flag.
        end: ends the process; takes an exit code.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world: int,
        *,
        stall_timeout_s: float,
        grace_s: float,
        stop: Stop,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.folder = folder
        self.rank = rank
        self.world = world
        self.stall_timeout_s = stall_timeout_s
        self.grace_s = grace_s
        self.stop = stop
        self._end = end
        self._stage = ""
        self._last = time.monotonic()
        self._saving = False
        self._over = threading.Event()

    def beat(self, stage: str) -> None:
        """A stage begins ("": one ended)."""
        self._stage, self._last = stage, time.monotonic()

    def saving(self) -> None:
        """The last save begins: the grace time no longer counts."""
        self.beat("save")
        self._saving = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within the block."""
        self.beat(self._stage)
        self._over.clear()
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        tick_s = min(1.0, self.stall_timeout_s / 10, self.grace_s / 4)
        woke = time.monotonic()
        while not self._over.wait(tick_s):
            now = time.monotonic()
            lost_s = now - woke - tick_s
            woke = now
            if lost_s > SUSPENDED_S:
                # This thread did not run either: the scheduler had stopped the process. Nothing stalled.
                self._last = min(now, self._last + lost_s)
                self.stop.forgive(lost_s)
            if self.stop.waiting_s() > self.grace_s and not self._saving:
                self._say(
                    f"the step was not finished {self.grace_s:g} s after the signal (checkpoint.grace_s); it is "
                    "dropped, the next attempt continues from the newest checkpoint"
                )
                self._end(ExitCode.REQUEUE)
                return
            if time.monotonic() - self._last > self.stall_timeout_s:
                self._stalled()
                return

    def _stalled(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{self.rank:05d}.txt"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"stage {self._stage or '(between stages)'}: no progress for {self.stall_timeout_s:g} s\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        # The first process to end has the launcher end the others: they write their stacks first.
        deadline = time.monotonic() + OTHERS_S
        while len(list(self.folder.glob("rank-*.txt"))) < self.world and time.monotonic() < deadline:
            time.sleep(0.2)
        self._say(
            f"stage {self._stage or '(between stages)'} made no progress for {self.stall_timeout_s:g} s "
            f"(run.stall_timeout_s); the stacks of all ranks are in {self.folder}{stopped_ranks()}"
        )
        self._end(ExitCode.FAILED)

    def _say(self, text: str) -> None:
        print(f"error: rank {self.rank}: {text}", file=sys.stderr, flush=True)
