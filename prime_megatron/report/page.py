"""The page: everything in one HTML file that asks for nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from prime_megatron import __version__
from prime_megatron.report.figure import Figure, curve_figure
from prime_megatron.report.judgement import (
    Standing,
    calibration_figure,
    in_words,
    profile_figure,
    separation_figure,
    standing,
)
from prime_megatron.report.lines import number
from prime_megatron.report.machine import event_figure, memory_figure, stage_figure
from prime_megatron.report.pictures import SECTIONS
from prime_megatron.report.run import Run
from prime_megatron.report.samples import Shown, Survey, show, survey
from prime_megatron.report.tokens import Largest, Paid, largest, paid, scales

MAX_BYTES = 10_000_000
"""Of the page: what a mail still takes."""
SPARE_BYTES = 400_000
"""Kept for the page's tables and script beside pictures and samples."""
MIN_SAMPLE_BYTES = 1_000_000


@dataclass(frozen=True)
class Block:
    """Pictures under a heading."""

    title: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Sampled:
    """A run's samples on the page."""

    run: int
    found: Survey
    shown: Shown
    standing: Standing | None
    most: Sequence[Largest]
    least: Sequence[Largest]
    paid: Sequence[Paid]


def page(runs: Sequence[Run]) -> str:
    """The report of some runs, at most MAX_BYTES in UTF-8."""
    blocks, missing = _curves(runs)
    machine = [figure for run in runs for figure in (stage_figure(run), memory_figure(run)) if figure is not None]
    events = event_figure(runs)
    surveys = [survey(run.samples) for run in runs]
    size = sum(len(figure.svg) + len(json.dumps(figure.data)) for block in blocks for figure in block.figures)
    room = max(MIN_SAMPLE_BYTES, MAX_BYTES - SPARE_BYTES * len(runs) - size) // len(runs)
    sampled = [_sampled(index, found, room) for index, found in enumerate(surveys)]
    judgement = [
        calibration_figure([run.name for run in runs], [found.judged for found in surveys]),
        *(separation_figure(run.name, found.judged) for run, found in zip(runs, surveys, strict=True)),
        *(profile_figure(run.name, own.shown) for run, own in zip(runs, sampled, strict=True)),
    ]
    text = (
        _environment()
        .get_template("page.html")
        .render(
            runs=runs,
            version=__version__,
            style=Markup(_asset("page.css")),
            script=Markup(_asset("page.js")),
            events=events,
            blocks=blocks,
            machine=machine,
            judgement=[figure for figure in judgement if figure is not None],
            missing=missing,
            sampled=sampled,
            metrics=[_metric_table(run) for run in runs],
            data=_script_json(_data(runs, sampled)),
            as_json=_script_json,
        )
    )
    return text


def _curves(runs: Sequence[Run]) -> tuple[list[Block], list[str]]:
    """Pictures by section, and the titles of those that no run has figures for."""
    blocks, missing = [], []
    for section in SECTIONS:
        figures = []
        for picture in section.pictures:
            figure = curve_figure(picture, runs)
            if figure is None:
                missing.append(picture.title)
            else:
                figures.append(figure)
        if figures:
            blocks.append(Block(section.title, figures))
    return blocks, missing


def _sampled(index: int, found: Survey, room: int) -> Sampled:
    shown = show(found, room)
    most, least = largest(shown)
    return Sampled(index, found, shown, standing(found.judged), most, least, paid(shown))


def _data(runs: Sequence[Run], sampled: Sequence[Sampled]) -> dict[str, Any]:
    """For the page's script: what is listed and filtered of every group, and the packed groups."""
    scaled = [scales(own.shown) for own in sampled]
    return {
        "runs": [
            {"name": run.name, "scale": whole, "steps": steps} for run, (whole, steps) in zip(runs, scaled, strict=True)
        ],
        "groups": [
            {
                "run": own.run, "step": group.step, "kind": group.kind, "filter": group.filter, "uid": group.uid,
                "source": group.source, "packed": packed,
                "s": [[int(response.right), int(response.disagrees)] for response in group.responses],
            }
            for own in sampled
            for group, packed in zip(own.shown.groups, own.shown.packed, strict=True)
        ],
    }  # fmt: skip


def _metric_table(run: Run) -> list[tuple[str, float, float, float]]:
    """(metric, last, least, greatest) of every metric that has a finite value."""
    found = []
    for key in sorted({key for row in run.metrics for key in row} - {"step"}):
        values = [value for row in run.metrics if (value := number(row.get(key))) is not None and math.isfinite(value)]
        if values:
            found.append((key, values[-1], min(values), max(values)))
    return found


def _script_json(value: Any) -> Markup:
    """JSON within a script element: nothing in it can end the element, or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _asset(name: str) -> str:
    return files("prime_megatron.report").joinpath(name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "figure": _digits,
        "signed": _signed,
        "token": _visible,
        "share": _share,
        "svg": Markup,
        "in_words": in_words,
    }
    return environment


def _digits(value: float | None) -> str:
    """Four digits; a dash for what is not there."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3g}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _visible(piece: str) -> str:
    """A token's text with its ends of lines and spaces to be seen."""
    return piece.replace("\n", "↵").replace("\t", "⇥") if piece.strip(" ") else ("␣" * len(piece) or "∎")
