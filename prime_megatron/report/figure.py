"""A picture with its legend and the values under the pointer, as the page shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.report.curves import Curve
from prime_megatron.report.draw import DASHES, draw, named, scaled, series
from prime_megatron.report.pictures import Picture
from prime_megatron.report.run import Event, Run

FLAT_DOTS = 30
"""A curve of so many points or fewer has a dot at each."""


@dataclass(frozen=True)
class Key:
    """A line of the legend, with the curve that it stands for."""

    label: str
    run: int
    colour: str
    """A CSS variable."""
    dash: int
    """Index of its dashes; -1: a filled area."""
    steps: Sequence[float] = ()
    values: Sequence[float] = ()
    """Empty where nothing is read off."""


@dataclass(frozen=True)
class Figure:
    """A picture."""

    title: str
    tells: str
    svg: str
    keys: Sequence[Key]
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    span: tuple[float, float] = (0.0, 0.0)
    note: str = ""

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, Key]]]]:
        """The legend: (label, its curves with their place among the keys)."""
        found: dict[str, list[tuple[int, Key]]] = {}
        for place, key in enumerate(self.keys):
            found.setdefault(key.label, []).append((place, key))
        return list(found.items())

    @property
    def data(self) -> dict[str, Any]:
        """For the page's script: where the axes are, and the curves; NaN as null."""
        rows = [
            {"s": [_short(step) for step in key.steps], "v": [_short(value) for value in key.values]}
            for key in self.keys
        ]
        return {"box": [round(part, 4) for part in self.box], "span": list(self.span), "keys": rows}


@dataclass
class Inks:
    """Colours and dashes: by label where there is one run, colours by run and dashes by label where there are more."""

    runs: int
    _labels: list[str] = field(default_factory=list)

    def of(self, run: int, label: str) -> tuple[int, int]:
        """(colour, dash) of a curve."""
        if label not in self._labels:
            self._labels.append(label)
        place = self._labels.index(label)
        dash = place % len(DASHES)
        return (run, dash) if self.runs > 1 else (place, dash)


def curve_figure(picture: Picture, runs: Sequence[Run]) -> Figure | None:
    """A picture's curves; None where no run has any."""
    curves = picture.curves(runs)
    if not curves:
        return None
    inks, keys = Inks(len(runs)), []
    for curve in curves:
        colour, dash = inks.of(curve.run, curve.label)
        keys.append(Key(curve.label, curve.run, f"c{colour}", dash, curve.steps, curve.values))

    def paint(axes: Any) -> None:
        for run, events in enumerate(run.events for run in runs):
            _shade_alarms(axes, events, runs[run])
        for curve, key in zip(curves, keys, strict=True):
            _line(axes, curve, key)
            if len(runs) > 1:
                _number(axes, curve)
        if picture.level is not None:
            axes.axhline(picture.level, color=named("level"), linewidth=0.8, zorder=1)
        finite = [value for curve in curves for value in curve.values if math.isfinite(value)]
        scaled(axes, finite, log=picture.log)

    drawing = draw(paint, picture.title)
    note = "thinned: least and greatest of each few steps" if any(curve.thinned for curve in curves) else ""
    return Figure(picture.title, picture.tells, drawing.svg, keys, drawing.box, drawing.span, note)


def _line(axes: Any, curve: Curve, key: Key) -> None:
    dots = {"marker": "o", "markersize": 2.6} if len(curve.steps) <= FLAT_DOTS else {}
    colour = series(int(key.colour[1:]))
    axes.plot(curve.steps, curve.values, color=colour, linestyle=DASHES[key.dash], linewidth=1.4, **dots)


def _number(axes: Any, curve: Curve) -> None:
    """The run's number at the end of its line, for those who do not tell the colours apart."""
    ends = [(step, value) for step, value in zip(curve.steps, curve.values) if math.isfinite(value)]
    axes.annotate(
        str(curve.run + 1), ends[-1], (3, 0), textcoords="offset points", va="center", color=named("text"), fontsize=9
    )


def _shade_alarms(axes: Any, events: Sequence[Event], run: Run) -> None:
    """Steps with the PRM's alarm on are shaded."""
    begun: int | None = None
    last = run.metrics[-1]["step"] if run.metrics else 0
    for row in run.metrics:
        on = bool(row.get("prm_health/alarm"))
        if on and begun is None:
            begun = row["step"]
        if begun is not None and (not on or row["step"] == last):
            axes.axvspan(begun, row["step"], color=named("negative"), alpha=0.1, linewidth=0)
            begun = None
    for step in {event.step for event in events if event.kind == "resumed"}:
        axes.axvline(step, color=named("level"), linewidth=0.8, linestyle=DASHES[2])


def _short(value: float) -> float | None:
    """Five digits; null for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
