"""Where a run stands, read from its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prime_megatron.checkpoint.layout import CHECKPOINTS, MARKER_FILE, step_of
from prime_megatron.errors import InputError
from prime_megatron.metrics.clock import BETWEEN, StepTimes
from prime_megatron.metrics.log import METRICS_FILE
from prime_megatron.metrics.pace import STEP_S, Pace
from prime_megatron.metrics.samples import SAMPLES_FILE
from prime_megatron.metrics.status import EVENTS_FILE, STATUS_FILE
from prime_megatron.metrics.summary import SUMMARY_FILE
from prime_megatron.strict_json import parse_json, read_bytes
from prime_megatron.watch.life import Life, State
from prime_megatron.watch.tail import last_rows, number, seconds

METRICS_BYTES = 2**20
EVENTS_BYTES = 2**17
SAMPLES_BYTES = 2**24
"""Read of the end of each file: the last steps, the last warnings, one response."""
SMALL_BYTES = 2**20
"""Largest status.json and summary.json."""
ALARMS = 3


@dataclass(frozen=True)
class Response:
    """One response of samples.jsonl."""

    step: int
    kind: str
    outcome: float | None
    verdict: str
    text: str


@dataclass(frozen=True)
class Standing:
    """What a run's folder says; None where it does not say."""

    folder: Path
    life: Life
    state: State
    name: str
    step: int | None
    """The last step that is logged."""
    num_steps: int | None
    stage: str | None
    """What the run does now; of a living run."""
    stage_s: float | None
    """How long it has been at it."""
    logged_s: float | None
    """Age of the last step."""
    step_s: float | None
    """Mean seconds of the last steps."""
    left_s: float | None
    figures: tuple[tuple[str, float], ...]
    """Label and value, in the order of the console: the last step's, or the last known where not every step has one."""
    times: StepTimes | None
    """Of the last step."""
    alarms: tuple[str, ...]
    """The last warnings, oldest first."""
    starts: int
    """Attempts."""
    saved: int | None
    """Step of the newest checkpoint."""
    response: Response | None
    """The last one that was written."""


def read_standing(folder: Path, life: Life) -> Standing:
    """Read what a run wrote, whatever of it is there, in this version's form or an older one's.

    Raises:
        InputError: no such folder, or a file in it cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; give the output folder of a run (run.output_dir)")
    try:
        return _read(folder, life)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _read(folder: Path, life: Life) -> Standing:
    rows = [row for row in last_rows(folder / METRICS_FILE, METRICS_BYTES) if type(row.get("step")) is int]
    status, summary = _small(folder / STATUS_FILE), _small(folder / SUMMARY_FILE)
    events = list(last_rows(folder / EVENTS_FILE, EVENTS_BYTES))
    step = rows[0]["step"] if rows else None
    num_steps = next((found for about in (status, summary) if type(found := about.get("steps")) is int), None)
    pace = Pace(num_steps or 0)
    for row in reversed(rows):
        pace.add(row["step"], {STEP_S: seconds(row.get(STEP_S))})
    state = _state(life, step, summary, bool(status or events))
    since = _stage_since(status, life) if state is State.running else None
    name, stage = status.get("name"), status.get("stage")
    return Standing(
        folder=folder,
        life=life,
        state=state,
        name=name if isinstance(name, str) else "",
        step=step,
        num_steps=num_steps,
        stage=stage if since is not None and isinstance(stage, str) else None,
        stage_s=None if since is None else time.time() - since,
        logged_s=time.time() - (folder / METRICS_FILE).stat().st_mtime if rows else None,
        step_s=pace.step_s,
        left_s=pace.left_s if num_steps and state is State.running else None,
        figures=_figures(rows, status.get("columns")),
        times=_times(rows[0]) if rows else None,
        alarms=_alarms(events, rows),
        starts=sum(event.get("kind") == "start" for event in events),
        saved=_newest_checkpoint(folder / CHECKPOINTS),
        response=_response(folder / SAMPLES_FILE),
    )


def _stage_since(status: Mapping[str, Any], life: Life) -> float | None:
    """When the present stage began, in seconds since 1970; None: it is of an attempt before this one."""
    since = seconds(status.get("since"))
    if since is None or life.owner is None:
        return None
    try:
        begun = datetime.fromisoformat(life.owner.since).timestamp()
    except ValueError:
        return None
    return since if since >= begun - 1.0 else None  # the lock's time has whole seconds


def _state(life: Life, step: int | None, summary: Mapping[str, Any], begun: bool) -> State:
    if life.done:
        return State.finished
    if life.owner is not None:
        return State.running if life.lives else State.dead
    if step is None and not begun:
        return State.nothing
    # A run of an older version says that it is done by its summary alone.
    ended = type(summary.get("steps")) is int and step is not None and step >= summary["steps"]
    return State.finished if ended else State.stopped


def _small(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none, or only half of one."""
    try:
        value = parse_json(read_bytes(path, SMALL_BYTES))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _figures(rows: list[dict[str, Any]], columns: Any) -> tuple[tuple[str, float], ...]:
    """Without status.json there are no labels: an older version's first figures are told by their own names."""
    if not isinstance(columns, dict):
        columns = {key: key for key in ("rollout/outcome", "eval/accuracy", "prm/accuracy", "policy/loss", "sft/loss")}
    found = []
    for key, label in columns.items():
        value = next((value for row in rows if (value := number(row.get(key))) is not None), None)
        if value is not None:
            found.append((str(label), value))
    return tuple(found)


def _times(row: Mapping[str, Any]) -> StepTimes | None:
    wall_s = seconds(row.get(STEP_S))
    if wall_s is None:
        return None
    stage_s = {}
    for key, value in row.items():
        took_s = seconds(value)
        if key.startswith("time/") and key.endswith("_s") and took_s is not None:
            stage_s[key.removeprefix("time/").removesuffix("_s")] = took_s
    own = {stage: took_s for stage, took_s in stage_s.items() if stage not in ("step", "bound_lead")}
    between_s = max(0.0, wall_s - sum(own.values()))
    by_length = sorted({**own, BETWEEN: between_s}.items(), key=lambda item: -item[1])
    return StepTimes(dict(by_length), wall_s)


def _alarms(events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """The last warnings; and what the last step's figures say of themselves, for a version without events."""
    told = [str(event.get("text")) for event in events if event.get("kind") == "warning"][:ALARMS][::-1]
    last = rows[0] if rows else {}
    if number(last.get("prm_health/alarm")):
        told.append("PRM health: its alarm is on (prm_health/alarm)")
    if restarts := number(last.get("engine/restarts")):
        told.append(f"engines were restarted {restarts:.0f} times (engine/restarts)")
    return tuple(told)


def _newest_checkpoint(root: Path) -> int | None:
    if not root.is_dir():
        return None
    steps = [step_of(entry) for entry in root.iterdir() if (entry / MARKER_FILE).exists()]
    return max((step for step in steps if step is not None), default=None)


def _response(path: Path) -> Response | None:
    for row in last_rows(path, SAMPLES_BYTES):
        text, step = row.get("response"), row.get("step")
        if isinstance(text, str) and type(step) is int:
            return Response(
                step, str(row.get("kind", "")), number(row.get("outcome")), str(row.get("verdict", "")), text
            )
    return None
