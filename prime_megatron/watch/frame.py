"""A run's standing as lines for a terminal of any width."""

from __future__ import annotations

import re
import textwrap

from rich.text import Text

from prime_megatron.metrics.clock import StepTimes
from prime_megatron.metrics.pace import duration
from prime_megatron.watch.life import State
from prime_megatron.watch.standing import Response, Standing

STYLES = {State.running: "green", State.finished: "green", State.dead: "bold red", State.stopped: "yellow"}
STAGES = 8
"""Stages that are shown, the longest first."""
RESPONSE_LINES = 6
"""Of the end of a response, where nothing says how many fit."""
STALE = 10.0
"""A step that takes so many times as long as the last ones is told of."""


def frame(standing: Standing, width: int, height: int | None = None) -> list[Text]:
    """The lines, none wider than ``width``; where ``height`` is known as much of a response as is left room for."""
    blocks = [_head(standing), _progress(standing, width), _stages(standing.times, width), _alarms(standing, width)]
    lines = [line for block in blocks for line in ([*block, Text()] if block else [])]
    if standing.response is not None:
        room = RESPONSE_LINES if height is None else max(0, height - len(lines) - 2)
        lines += _response(standing.response, width, room)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def verdict(standing: Standing) -> str:
    """How the run stands, in a sentence."""
    owner, saved = standing.life.owner, standing.saved
    onward = f"; step {saved} is saved: go on with --resume auto" if saved else ""
    match standing.state:
        case State.nothing:
            return "nothing has begun: no run has written here"
        case State.running:
            return f"running: {owner}"
        case State.finished:
            return "finished"
        case State.dead:
            sign_s = standing.life.sign_s
            silent = "is gone" if sign_s is None else f"gave no sign of life for {duration(sign_s)}"
            return f"dead: its owner, {owner}, {silent}{onward}"
        case State.stopped:
            return f"not running: nobody owns the folder{onward}"


def _head(standing: Standing) -> list[Text]:
    title = f"{standing.name}  {standing.folder}" if standing.name else str(standing.folder)
    attempts = f"  attempt {standing.starts}" if standing.starts > 1 else ""
    said = verdict(standing)
    # The owner's line is long: every part of it is to be read at 80 columns.
    first, _, rest = said.partition(": ")
    style = STYLES.get(standing.state, "")
    lines = [Text(_plain(title + attempts), "bold"), Text(first, style)]
    return lines + [Text(f"  {_plain(part)}") for part in re.split(r"(?:, |; )", rest) if part]


def _progress(standing: Standing, width: int) -> list[Text]:
    if standing.step is None and standing.stage is None:
        return [Text("now it starts: no stage has begun yet")] if standing.state is State.running else []
    step, total = standing.step or 0, standing.num_steps
    parts = [f"step {step}/{total}" if total else f"step {step}"]
    if total:
        share = min(1.0, step / total)
        cells = max(4, min(30, width - 50))
        parts.append(f"[{'#' * round(share * cells):.<{cells}}] {100 * share:.0f} %")
    if standing.step_s is not None:
        parts.append(f"{standing.step_s:.1f} s a step")
    if standing.left_s:
        parts.append(f"{duration(standing.left_s)} left")
    lines = [Text("  ".join(parts), "bold")]
    if standing.stage is not None and standing.stage_s is not None:
        lines.append(Text(f"now {_plain(standing.stage)}, for {duration(max(0.0, standing.stage_s))}"))
    if standing.logged_s is not None:
        lines.append(_last_step(standing, standing.logged_s))
    figures = "  ".join(f"{_plain(label)} {_figure(value)}" for label, value in standing.figures)
    return lines + [Text(line) for line in textwrap.wrap(figures, max(width, 1), break_on_hyphens=False)]


def _last_step(standing: Standing, age_s: float) -> Text:
    line = Text(f"last step logged {duration(max(0.0, age_s))} ago")
    if standing.state is State.running and standing.step_s and age_s > max(60.0, STALE * standing.step_s):
        line.append(f": {age_s / standing.step_s:.0f} times as long as a step takes", "yellow")
    return line


def _stages(times: StepTimes | None, width: int) -> list[Text]:
    if times is None:
        return []
    stages = list(times.stage_s.items())[:STAGES]
    bound = times.stage_s and stages[0][1] - (stages[1][1] if len(stages) > 1 else 0.0)
    lines = [Text(f"last step {times.wall_s:.1f} s, bound by {_plain(stages[0][0])} (+{bound:.1f} s)", "bold")]
    cells = max(0, min(30, width - 40))
    for stage, seconds in stages:
        share = seconds / times.wall_s if times.wall_s > 0 else 0.0
        bar = "#" * round(min(1.0, share) * cells)
        lines.append(Text(f"  {_plain(stage):<16} {seconds:>9.2f} s {100 * share:>4.0f} %  {bar}"))
    return lines


def _alarms(standing: Standing, width: int) -> list[Text]:
    lines = []
    for alarm in standing.alarms:
        for index, part in enumerate(textwrap.wrap(_plain(alarm), max(10, width - 4))[:3]):
            lines.append(Text(f"{'  ! ' if index == 0 else '    '}{part}", "yellow"))
    return [Text("alarms", "bold"), *lines] if lines else []


def _response(response: Response, width: int, room: int) -> list[Text]:
    """Its end, each line of the text wrapped."""
    about = [f"step {response.step}", response.kind, response.verdict]
    if response.outcome is not None:
        about.append(f"outcome {response.outcome:g}")
    wrapped = [
        part
        for line in response.text[-10_000:].splitlines()
        for part in textwrap.wrap(_plain(line), max(10, width - 2)) or [""]
    ]
    head = Text(_plain(f"end of a response: {', '.join(part for part in about if part)}"), "bold")
    return [head, *(Text(f"  {line}") for line in wrapped[-room:])] if room else [head]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _plain(text: str) -> str:
    """Without what a terminal would obey: a response may hold anything."""
    return "".join(char if char.isprintable() else " " for char in text)
