"""Where a run stands, for those who look from outside: status.json, replaced whenever a stage begins, and events.jsonl,
what the console was told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prime_megatron.errors import RunError
from prime_megatron.metrics.jsonl import JsonlFile, format_line

STATUS_FILE = "status.json"
EVENTS_FILE = "events.jsonl"
WARNING = "warning: "
"""How a warning's text begins."""


class StatusSink:
    """Both files. What cannot be written is left out: they are to look at, and metrics.jsonl tells of a full disk.

    Args:
        output_dir: the run's folder.
        name: run.name.
        num_steps: run.steps.
        columns: metric and label of the figures of a progress line.
        now: seconds since 1970.
    """

    def __init__(
        self,
        output_dir: Path,
        name: str,
        num_steps: int,
        columns: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = output_dir / STATUS_FILE
        self._events = JsonlFile(output_dir / EVENTS_FILE)
        self._about = {"name": name, "steps": num_steps, "columns": dict(columns)}
        self._now = now
        self._step = 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._step = step

    def stage(self, text: str) -> None:
        if not text:
            return  # between two stages: the next one is told at once
        status = {**self._about, "step": self._step, "stage": text, "since": self._now()}
        temporary = self._path.with_suffix(".json.tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps(status) + "\n", encoding="utf-8")
            os.replace(temporary, self._path)

    def message(self, text: str) -> None:
        kind = "warning" if text.startswith(WARNING) else "message"
        self._event(kind, text.removeprefix(WARNING))

    def restore(self, step: int) -> None:
        """An attempt begins; what earlier ones said stays."""
        self._step = max(0, step)
        self._event("start", f"goes on after step {self._step}" if self._step else "begins")

    def close(self) -> None:
        self._events.close()

    def _event(self, kind: str, text: str) -> None:
        with suppress(RunError):
            self._events.write(format_line(self._step, {"time": self._now(), "kind": kind, "text": text}))
