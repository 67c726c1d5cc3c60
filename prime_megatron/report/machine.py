"""Pictures of time and memory: stage seconds, memory by phase, the time line of events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prime_megatron.report.draw import NUM_COLOURS, draw, named, series
from prime_megatron.report.figure import Figure, Key
from prime_megatron.report.lines import number
from prime_megatron.report.run import KINDS, Run

STAGES = ("rollout", "score", "prm", "advantage", "policy", "critic", "reshard", "eval", "save")
"""From the bottom up; others lie above them."""
EDGES = ("asleep", "updated", "trained", "weights_awake", "synced", "cache_awake", "generated")
"""Of a step, in order (``run.colocation``); a model's own edges lie before them."""
MAX_COLUMNS = 200
"""Columns of the stacked picture; of more steps the means of a few are shown."""
DEVICE, HOST = "_device_bytes", "_host_bytes"
BETWEEN = "between stages"


def stage_figure(run: Run) -> Figure | None:
    """Seconds of every stage, stacked; None where the run has no times."""
    steps, table = _stages(run.metrics)
    if not table:
        return None
    totals = {stage: sum(value for value in values if math.isfinite(value)) for stage, values in table.items()}
    largest = sorted(table, key=lambda stage: totals[stage], reverse=True)[:NUM_COLOURS]
    order = [stage for stage in (*STAGES, *sorted(table.keys() - {*STAGES})) if stage in largest]
    keys = [Key(stage, 0, f"c{place}", -1, steps, table[stage]) for place, stage in enumerate(order)]

    def paint(axes: Any) -> None:
        stack = [list(table[stage]) for stage in order]
        colours = [series(place) for place in range(len(order))]
        axes.stackplot(steps, *stack, colors=colours, edgecolor=named("page"), linewidth=0.4, joinstyle="round")
        axes.set_ylim(bottom=0)

    drawing = draw(paint, f"stages {run.name}")
    tells = "Wall-clock seconds of a step by stage. The widest band is what a faster step must shrink."
    return Figure("Seconds by stage", tells, drawing.svg, keys[::-1], drawing.box, drawing.span)


def _stages(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[float], dict[str, list[float]]]:
    """Steps, and seconds of each stage (and between them); the means of a few steps where there are many."""
    rows = [row for row in metrics if row["step"] > 0 and number(row.get("time/step_s")) is not None]
    names = sorted({key for row in rows for key in row if key.startswith("time/")} - {"time/step_s"})
    size = max(1, math.ceil(len(rows) / MAX_COLUMNS))
    steps: list[float] = []
    table: dict[str, list[float]] = {name.removeprefix("time/").removesuffix("_s"): [] for name in names}
    table[BETWEEN] = []
    for start in range(0, len(rows), size):
        few = rows[start : start + size]
        steps.append(few[0]["step"])
        own = [sum(number(row.get(name)) or 0.0 for row in few) / len(few) for name in names]
        whole = sum(number(row["time/step_s"]) or 0.0 for row in few) / len(few)
        for name, value in zip(table, [*own, max(0.0, whole - sum(own))], strict=True):
            table[name].append(value)
    return steps, table if rows and names else {}


def memory_figure(run: Run) -> Figure | None:
    """Bytes of every model at the edges of the last step; None where the run has none."""
    held, whole = _memory(run.memory[-1]) if run.memory else ({}, {})
    own = [edge for edge in sorted({*held, *whole}) if edge not in EDGES]
    edges = [*own, *(edge for edge in EDGES if edge in held or edge in whole)]
    if not edges:
        return None
    roles = sorted({role for sizes in held.values() for role in sizes})
    unit, size = _unit(max((sum(sizes.values()) for sizes in held.values()), default=0.0) or max(whole.values()))
    keys = [Key(role, 0, f"c{place}", -1) for place, role in enumerate(roles)]

    def paint(axes: Any) -> None:
        left = [0.0] * len(edges)
        places = [-place for place in range(len(edges))]
        for place, role in enumerate(roles):
            widths = [held.get(edge, {}).get(role, 0.0) / size for edge in edges]
            axes.barh(places, widths, 0.62, left, color=series(place), edgecolor=named("page"), linewidth=0.5)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for edge, place, end in zip(edges, places, left, strict=True):
            if edge in whole:
                name, part = _unit(whole[edge])
                text = f"process {whole[edge] / part:.3g} {name}"
                axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", color=named("text"))
        axes.set_yticks(places, [edge.replace("_", " ") for edge in edges])
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=named("grid"), linewidth=0.8)
        axes.set_xlim(0, (max(left) or 1.0) * 1.35)
        axes.set_xlabel(f"{unit} of the models", color=named("text"))

    tells = "What the models hold on the first rank in the last step, in a step's order; beside it the whole process."
    return Figure("Memory by phase", tells, draw(paint, f"memory {run.name}").svg, keys)


def _memory(row: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(device bytes by edge and model, bytes of the whole process by edge: of the device, on a CPU of the host)."""
    held: dict[str, dict[str, float]] = {}
    whole: dict[str, float] = {}
    for key in sorted(row):  # device before host
        value, parts = number(row[key]), key.split("/")
        if value is None:
            continue
        if len(parts) == 4 and key.endswith(DEVICE):
            roles = held.setdefault(parts[1], {})
            roles[parts[2]] = roles.get(parts[2], 0.0) + value
        elif len(parts) == 2:
            whole.setdefault(parts[1].removesuffix(DEVICE).removesuffix(HOST), value)
    return held, whole


def _unit(largest: float) -> tuple[str, float]:
    return next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if largest >= size), ("kB", 1e3))


def event_figure(runs: Sequence[Run]) -> Figure | None:
    """Every run's events on one time line; None where nothing happened."""
    kinds = [kind for kind in KINDS if any(event.kind == kind for run in runs for event in run.events)]
    if not kinds:
        return None
    keys = [Key(run.name, index, f"c{index}", 0) for index, run in enumerate(runs)] if len(runs) > 1 else []

    def paint(axes: Any) -> None:
        ends = [run.metrics[end]["step"] for run in runs if run.metrics for end in (0, -1)]
        for index, run in enumerate(runs):
            found = [(event.step, kinds.index(event.kind)) for event in run.events if event.kind in kinds]
            shift = (index - (len(runs) - 1) / 2) * 0.5 / len(runs)
            colour = series(index) if len(runs) > 1 else named("negative")
            axes.plot(
                [step for step, _ in found], [-kind - shift for _, kind in found], "D", color=colour, markersize=4
            )
            ends += [step for step, _ in found]
        axes.set_yticks([-place for place in range(len(kinds))], kinds)
        axes.set_ylim(0.6 - len(kinds), 0.6)
        axes.set_xlim(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1)

    drawing = draw(paint, "events", size=(820, 36 + 18 * len(kinds)))
    tells = "A shaded stretch in the pictures below is a PRM alarm, a dotted upright a resume. The table has the words."
    return Figure("What happened when", tells, drawing.svg, keys, drawing.box, drawing.span)
