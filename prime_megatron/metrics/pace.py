"""How fast a run goes, and how long it has to go."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

STEP_S = "time/step_s"
WINDOW = 20
"""Steps that the pace is the mean of: evaluations and saves come between steps and belong to it."""


class Pace:
    """Mean seconds of the last steps, evaluations and saves between them included.

    Args:
        num_steps: run.steps.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._step = 0
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """A step is logged; without time/step_s (the state before the first one) it says nothing of the pace."""
        self._step = step
        if values.get(STEP_S) is not None:
            self._seconds.append(float(values[STEP_S]))

    @property
    def step_s(self) -> float | None:
        """Seconds a step; None before the first one."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the run; None before the first step."""
        return None if self.step_s is None else self.step_s * max(0, self._num_steps - self._step)


def duration(seconds: float) -> str:
    """Seconds as one reads them: 45 s, 12 min, 3 h 05 min, 6 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
