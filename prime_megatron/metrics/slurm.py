"""The comment of a SLURM job: squeue and scontrol show where a run stands."""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from prime_megatron.metrics.pace import Pace, duration
from prime_megatron.metrics.sinks import FileSink

EVERY_S = 60.0
"""Shortest time between two updates: every one is a request to SLURM's controller."""
ACCURACY = "eval/accuracy"


class SlurmCommentSink(FileSink):
    """Sets the job's comment to step, time left and last accuracy, in a thread of its own; what fails is left alone.

    Args:
        job: SLURM_JOB_ID.
        num_steps: run.steps.
        now: the clock, in seconds.
        tell: sets the comment.
    """

    def __init__(
        self,
        job: str,
        num_steps: int,
        now: Callable[[], float] = time.monotonic,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self._job = job
        self._num_steps = num_steps
        self._now = now
        self._tell = _scontrol if tell is None else tell
        self._pace = Pace(num_steps)
        self._told = -math.inf
        self._accuracy: float | None = None
        self._thread: threading.Thread | None = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        now = self._now()
        if values.get(ACCURACY) is not None:
            self._accuracy = float(values[ACCURACY])
        self._pace.add(step, values)
        busy = self._thread is not None and self._thread.is_alive()
        if busy or (now - self._told < EVERY_S and step < self._num_steps):
            return
        self._told = now
        self._thread = threading.Thread(target=self._tell, args=(self._job, self._text(step)), daemon=True)
        self._thread.start()

    def restore(self, step: int) -> None:
        """The pace is that of this attempt."""

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _text(self, step: int) -> str:
        parts = [f"step {step}/{self._num_steps}"]
        if self._pace.left_s:
            parts.append(f"{duration(self._pace.left_s)} left")
        if self._accuracy is not None:
            parts.append(f"accuracy {self._accuracy:.3f}")
        return ", ".join(parts)


def _scontrol(job: str, text: str) -> None:
    command = ["scontrol", "update", f"JobId={job}", f"Comment={text}"]
    try:
        subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
