"""What a run's folder holds of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.metrics.log import METRICS_FILE
from prime_megatron.metrics.samples import SAMPLES_FILE
from prime_megatron.report.lines import Lines, number

MEMORY_FILE, EVENTS_FILE = "memory.jsonl", "events.jsonl"
LATEST_S = 4e9
"""No event is later, in seconds since 1970."""
MAX_RUNS = 8
"""Runs in one report: as many colours as can be told apart."""


@dataclass(frozen=True)
class Event:
    """Something that happened at a step."""

    step: int
    kind: str
    """A row of the time line: one of `KINDS`."""
    text: str
    time: str


KINDS = ("warning", "PRM alarm", "resumed", "engine restart", "skipped update", "batch not full")
_OF_STEP = re.compile(r"step (\d+): (.*)", re.DOTALL)
"""A warning of a step's own figures."""


@dataclass(frozen=True)
class Run:
    """A run's figures; its samples are read apart."""

    name: str
    folder: Path
    metrics: Sequence[Mapping[str, Any]]
    """A row a step."""
    memory: Sequence[Mapping[str, Any]]
    events: Sequence[Event]
    notes: Sequence[str]
    """What could not be read."""

    @property
    def samples(self) -> Path:
        """Its samples.jsonl, which may not be there."""
        return self.folder / SAMPLES_FILE

    def first(self, key: str) -> float | None:
        """A metric's first value."""
        return next((value for row in self.metrics if (value := number(row.get(key))) is not None), None)

    def last(self, key: str) -> float | None:
        """A metric's last value."""
        return next((value for row in reversed(self.metrics) if (value := number(row.get(key))) is not None), None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, under names that tell them apart.

    Raises:
        InputError: too many; the same one twice; a folder that is not there or holds nothing of a run.
    """
    if len(folders) > MAX_RUNS:
        raise InputError(f"{len(folders)} runs are too many for one report; give at most {MAX_RUNS}")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder}: given twice; give each run once")
    return [_read(folder, name) for folder, name in zip(folders, _names(places), strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many of their parents as tell them apart."""
    depth = 1
    while True:
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of a run (run.output_dir)")
    files = {file: Lines(folder / file) for file in (METRICS_FILE, MEMORY_FILE, EVENTS_FILE)}
    rows = {file: [row for _, row in lines] for file, lines in files.items()}
    if not rows[METRICS_FILE] and not (folder / SAMPLES_FILE).is_file():
        raise InputError(
            f"{folder}: nothing of a run is in it yet (no step in {METRICS_FILE}, no {SAMPLES_FILE}); give a run's "
            "output folder, or wait for its first step"
        )
    metrics = rows[METRICS_FILE]
    notes = [lines.note for lines in files.values() if lines.note is not None]
    if not metrics:
        notes.append(f"{METRICS_FILE}: no steps, so there are no curves")
    told = [event for row in rows[EVENTS_FILE] if (event := _told(row)) is not None]
    events = sorted([*told, *_from_metrics(metrics)], key=lambda event: event.step)
    return Run(name, folder, metrics, rows[MEMORY_FILE], events, notes)


def _told(row: Mapping[str, Any]) -> Event | None:
    """What a row of events.jsonl says; None of one that is no news: the console's other lines, a first start."""
    step, kind, text, at = row["step"], row.get("kind"), str(row.get("text")), number(row.get("time"))
    time = ""
    if at is not None and 0 <= at < LATEST_S:
        time = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
    if kind == "start" and step > 0:
        return Event(step, "resumed", text, time)
    if kind != "warning":
        return None
    own = _OF_STEP.fullmatch(text)
    return Event(step, "warning", text, time) if own is None else Event(int(own[1]), "warning", own[2], time)


def _from_metrics(metrics: Sequence[Mapping[str, Any]]) -> list[Event]:
    """What the figures themselves tell, which older runs have, too."""
    found: list[Event] = []
    restarts = 0.0
    for row in metrics:
        step = row["step"]
        now = number(row.get("engine/restarts"))
        if now is not None and now > restarts:
            found.append(Event(step, "engine restart", f"{now - restarts:.0f} engine process(es) started again", ""))
            restarts = now
        for key, value in row.items():
            if key.endswith("/skipped_updates") and (count := number(value)):
                role = key.removesuffix("/skipped_updates")
                found.append(Event(step, "skipped update", f"{role}: {count:.0f} update(s) not finite", ""))
        if missing := number(row.get("rollout/missing")):
            found.append(Event(step, "batch not full", f"{missing:.0f} prompt(s) fewer than asked for", ""))
        change = number(row.get("prm_health/change"))
        if change:
            found.append(Event(step, "PRM alarm", "the alarm begins" if change > 0 else "the alarm ends", ""))
    return found
