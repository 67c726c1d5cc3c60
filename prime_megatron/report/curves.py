"""Metrics over steps as lines: gaps where a value is missing, thinned where there are many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from prime_megatron.report.lines import number

MAX_POINTS = 400
"""Of one curve; of more the least and the greatest of every bucket are kept."""
GAP = 1.5
"""A jump over so many times a metric's usual distance between steps is a gap."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run."""

    run: int
    """Which run's."""
    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    """NaN is a gap."""
    thinned: bool


def curve_of(metrics: Sequence[Mapping[str, Any]], key: str, *, run: int, label: str) -> Curve | None:
    """A metric's curve; None where it has no finite value."""
    points = [(float(row["step"]), value) for row in metrics if (value := number(row.get(key))) is not None]
    points = [(step, value if math.isfinite(value) else math.nan) for step, value in points]
    if all(math.isnan(value) for _, value in points):
        return None
    points = _with_gaps(points)
    kept = _thinned(points)
    steps, values = zip(*kept, strict=True)
    return Curve(run, label, steps, values, len(kept) < len(points))


def _with_gaps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    distances = [after - before for (before, _), (after, _) in pairwise(points)]
    if not distances:
        return points
    usual = median(distances)
    found = points[:1]
    for distance, point in zip(distances, points[1:], strict=True):
        if distance > GAP * usual:
            found.append((point[0] - distance / 2, math.nan))
        found.append(point)
    return found


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    found: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [point for point in bucket if not math.isnan(point[1])]
        ends = [min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])] if finite else bucket
        found += sorted(set(ends[:2]))
    return found
