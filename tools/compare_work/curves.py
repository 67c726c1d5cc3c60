"""Statistics of a curve of evaluations: final value, smoothing, first passage, area.

A curve is its steps and its values, one for each evaluation, the first before any update.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

WINDOW = 3
"""Evaluations that a mean is taken over."""


@dataclass(frozen=True)
class Curve:
    """Values over steps, both rising in time; at least WINDOW of them."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def final(self) -> float:
        """Mean of the last WINDOW evaluations."""
        return sum(self.values[-WINDOW:]) / WINDOW

    @property
    def area(self) -> float:
        """Mean value over the steps, by trapezoids."""
        points = zip(self.steps, self.values, strict=True)
        total = sum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(points))
        return total / (self.steps[-1] - self.steps[0])

    def smoothed(self) -> Curve:
        """Means over WINDOW neighbouring evaluations, each at the middle one's step."""
        half = WINDOW // 2
        values = [sum(self.values[i - half : i + half + 1]) / WINDOW for i in range(half, len(self.values) - half)]
        return Curve(self.steps[half : len(self.steps) - half], tuple(values))

    def first_passage(self, level: float) -> float | None:
        """First step at which the straight lines between the values reach a level; None: they never do."""
        if self.values[0] >= level:
            return self.steps[0]
        for i in range(1, len(self.values)):
            low, high = self.values[i - 1], self.values[i]
            if high >= level:
                share = (level - low) / (high - low)
                return self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1])
        return None

    def at(self, step: float) -> float:
        """The value at a step within the curve, on the straight line between its neighbours."""
        for i in range(1, len(self.steps)):
            if step <= self.steps[i]:
                share = (step - self.steps[i - 1]) / (self.steps[i] - self.steps[i - 1])
                return self.values[i - 1] + share * (self.values[i] - self.values[i - 1])
        raise ValueError(f"step {step} lies beyond the curve's last, {self.steps[-1]}")


def passage(curve: Curve, level: float) -> float | None:
    """Step at which a noisy curve reaches a level: the first passage of the smoothed one."""
    return curve.smoothed().first_passage(level)
