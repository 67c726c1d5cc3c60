"""Seconds per stage of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

BETWEEN = "(between stages)"
"""What `StepTimes.bound` calls the time that no stage covers."""


@dataclass(frozen=True)
class StepTimes:
    """Where one step's wall-clock seconds went."""

    stage_s: Mapping[str, float]
    """Seconds of each stage, its inner stages left out; in the order in which the stages first ended."""
    wall_s: float
    """Seconds from the last lap (or the clock's start) to this one; what no stage covers is the difference."""

    def metrics(self) -> dict[str, float | str]:
        """The times as metrics: time/<stage>_s, time/step_s, and which stage bound the step (`bound`)."""
        return {f"time/{stage}_s": seconds for stage, seconds in self.stage_s.items()} | {
            "time/step_s": self.wall_s,
            **self.bound(),
        }

    def bound(self) -> dict[str, float | str]:
        """The stage that took longest (time between stages counts as one), its share of the step, and the seconds by
        which it took longer than the next longest: what a faster stage can win before another one binds. Empty for a
        step without stages."""
        if not self.stage_s or self.wall_s <= 0:
            return {}
        parts = {**self.stage_s, BETWEEN: max(0.0, self.wall_s - sum(self.stage_s.values()))}
        stage, next_longest = sorted(parts, key=lambda part: -parts[part])[:2]
        return {
            "time/bound_stage": stage,
            "time/bound_share": parts[stage] / self.wall_s,
            "time/bound_lead_s": parts[stage] - parts[next_longest],
        }


class Clock:
    """Stage timers: ``with clock("rollout"): ...``, then ``clock.lap()`` once a step.

    Stages may nest: time in an inner stage counts for the inner stage only, so the stages never add up to more
    than the wall clock. A stage entered twice in a step adds up. An exception in a stage still ends it.

    Args:
        synchronize: waits for the device's queue, called at both ends of a stage, so that asynchronous work is
            charged to the stage that started it; does nothing by default.
        on_stage: called with the stage's name when one begins, and with the outer stage's name ("" for none)
            when it ends.
        on_span: called when a stage ends, with its name and the clock's seconds at its beginning and end, inner stages
            included.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        on_stage: Callable[[str], None] = lambda name: None,
        on_span: Callable[[str, float, float], None] = lambda name, begin_s, end_s: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize = synchronize
        self._on_stage = on_stage
        self._on_span = on_span
        self._now = now
        self._stack: list[str] = []
        self._step_s: dict[str, float] = {}
        self._total_s: dict[str, float] = {}
        self._total_wall_s = 0.0
        self._mark = self._lap_start = now()

    @property
    def stage(self) -> str:
        """The innermost running stage, "" between stages."""
        return self._stack[-1] if self._stack else ""

    @property
    def total_s(self) -> dict[str, float]:
        """Seconds of each stage over all finished laps."""
        return dict(self._total_s)

    @property
    def total_wall_s(self) -> float:
        """Seconds of all finished laps."""
        return self._total_wall_s

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._switch()
        self._stack.append(stage)
        begin_s = self._mark
        self._on_stage(stage)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()
            self._on_span(stage, begin_s, self._mark)
            self._on_stage(self.stage)

    def lap(self) -> StepTimes:
        """End the step: return its times, add them to the totals and start the next one. Not inside a stage."""
        assert not self._stack, f"lap() inside stage {self.stage}"
        end = self._now()
        times = StepTimes(stage_s=self._step_s, wall_s=end - self._lap_start)
        self._add(times.stage_s, times.wall_s)
        self._step_s, self._lap_start = {}, end
        return times

    def restore(self, total_s: Mapping[str, float], total_wall_s: float) -> None:
        """Add the totals of the attempts before this one (a resumed run)."""
        self._add(total_s, total_wall_s)

    def _add(self, stage_s: Mapping[str, float], wall_s: float) -> None:
        for stage, seconds in stage_s.items():
            self._total_s[stage] = self._total_s[stage] + seconds if stage in self._total_s else seconds
        self._total_wall_s += wall_s

    def _switch(self) -> None:
        """Charge the time since the last switch to the running stage."""
        self._synchronize()
        end = self._now()
        if self._stack:
            stage, seconds = self._stack[-1], end - self._mark
            self._step_s[stage] = self._step_s[stage] + seconds if stage in self._step_s else seconds
        self._mark = end
