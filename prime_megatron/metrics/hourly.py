"""One line an hour for a log that nobody watches: what the last hour did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from prime_megatron.metrics.columns import Column, column_texts
from prime_megatron.metrics.pace import Pace, duration

EVERY_S = 3600.0


class Hourly:
    """Means over the steps of an hour.

    Args:
        num_steps: run.steps.
        columns: the figures to tell.
        now: the clock, in seconds.
    """

    def __init__(self, num_steps: int, columns: tuple[Column, ...], now: Callable[[], float]) -> None:
        self._num_steps = num_steps
        self._columns = columns
        self._now = now
        self._begun_s = now()
        self._step = 0
        self._rows: list[Mapping[str, Any]] = []

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """A step is logged."""
        self._step = step
        self._rows.append(values)

    def line(self, pace: Pace) -> str | None:
        """The line, once an hour is over; None before. It says so where no step was finished."""
        past_s = self._now() - self._begun_s
        if past_s < EVERY_S:
            return None
        rows, self._rows, self._begun_s = self._rows, [], self._now()
        parts = [f"last {duration(past_s)}: {len(rows) or 'no'} step{'s' * (len(rows) != 1)} finished"]
        parts.append(f"{self._step}/{self._num_steps} ({100 * self._step / self._num_steps:.1f} %)")
        parts += column_texts(self._columns, _means(rows))
        bound = Counter(row["time/bound_stage"] for row in rows if "time/bound_stage" in row)
        parts += [f"bound by {stage} in {count}" for stage, count in bound.most_common(1)]
        if pace.left_s is not None:
            parts.append(f"{duration(pace.left_s)} left")
        return "  ".join(parts)


def _means(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, (int, float)):
                found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}
