"""Where metrics go: the Sink that all of them are, the console, metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prime_megatron.metrics.columns import Column, column_texts
from prime_megatron.metrics.hourly import Hourly
from prime_megatron.metrics.jsonl import JsonlFile, format_line
from prime_megatron.metrics.pace import Pace, duration

Values = Mapping[str, Any]


class Sink(Protocol):
    """One destination. `restore` comes before the first `log` of a resumed run."""

    def log(self, step: int, values: Values) -> None: ...

    def stage(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...

    def restore(self, step: int) -> None: ...

    def close(self) -> None: ...


class FileSink:
    """What every sink that shows no progress shares."""

    def stage(self, text: str) -> None:
        """Nothing to show."""

    def message(self, text: str) -> None:
        """Nothing to show."""


MEMORY = "memory/"
"""Metrics of this group are the machine's own and differ between two runs of one seed."""


class JsonlSink(FileSink):
    """metrics.jsonl: one line a step, flushed; see `jsonl` for the format. The group memory/ goes to memory.jsonl, so
    that two runs of one seed write the same metrics, timings aside."""

    def __init__(self, path: Path) -> None:
        self._file = JsonlFile(path)
        self._memory = JsonlFile(path.with_name("memory.jsonl"))

    def log(self, step: int, values: Values) -> None:
        memory = {key: value for key, value in values.items() if key.startswith(MEMORY)}
        self._file.write(format_line(step, {key: value for key, value in values.items() if key not in memory}))
        if memory:
            self._memory.write(format_line(step, memory))

    def restore(self, step: int) -> None:
        self._file.truncate(step)
        self._memory.truncate(step)

    def close(self) -> None:
        self._file.close()
        self._memory.close()


BREAKDOWN = (
    ("rollout/outcome", "outcome"),
    ("rollout/pass_rate", "kept"),
    ("prm/accuracy", "PRM acc"),
    ("eval/accuracy", "eval"),
)
"""Figures that are told apart by ability and by data source, with their labels."""


def breakdown_lines(values: Values) -> list[str]:
    """A line for every ability where there are several, and for every data source where there are more of them."""
    by_kind: dict[str, list[str]] = {}
    for kind in ("ability", "data_source"):
        prefixes = [f"{figure}/{kind}/" for figure, _ in BREAKDOWN]
        by_kind[kind] = sorted({key.removeprefix(p) for p in prefixes for key in values if key.startswith(p)})
    told = {"ability": len(by_kind["ability"]) > 1}
    told["data_source"] = len(by_kind["data_source"]) > max(1, len(by_kind["ability"]))
    lines = []
    for kind, name in [(kind, name) for kind, names in by_kind.items() if told[kind] for name in names]:
        found = [(label, values.get(f"{figure}/{kind}/{name}")) for figure, label in BREAKDOWN]
        lines.append("  ".join([name, *(f"{label} {value:.3f}" for label, value in found if value is not None)]))
    return lines


class ConsoleSink:
    """Progress: on a terminal a line per step above a live status line; elsewhere plain lines with the time (UTC), and
    one an hour that sums it up."""

    def __init__(
        self,
        num_steps: int,
        columns: tuple[Column, ...],
        console: Console,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps = num_steps
        self._columns = columns
        self._console = console
        self._step = 0
        self._pace = Pace(num_steps)
        self._hourly = Hourly(num_steps, columns, now)
        self._live: Live | None = None

    def log(self, step: int, values: Values) -> None:
        self._step = step
        self._pace.add(step, values)
        self._hourly.add(step, values)
        parts = [f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}", *column_texts(self._columns, values)]
        if "time/bound_stage" in values:
            share, lead_s = values["time/bound_share"], values["time/bound_lead_s"]
            parts.append(f"bound by {values['time/bound_stage']} {100 * share:.0f} % (+{lead_s:.1f} s)")
        if self._pace.left_s:
            parts.append(f"{duration(self._pace.left_s)} left")
        self.message("  ".join(parts))
        for line in breakdown_lines(values):
            self.message(f"  {line}")
        self._tell_hour()

    def stage(self, text: str) -> None:
        if not self._console.is_terminal:
            self._tell_hour()
            return
        line = Text(f"step {min(self._step + 1, self._num_steps)}/{self._num_steps}  {text}")
        if self._live is None:
            self._live = Live(Spinner("dots", line), console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        else:
            self._live.update(Spinner("dots", line))

    def message(self, text: str) -> None:
        if not self._console.is_terminal:
            text = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}"
        self._console.print(Text(text), soft_wrap=True)

    def restore(self, step: int) -> None:
        self._step = step

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tell_hour(self) -> None:
        if not self._console.is_terminal and (line := self._hourly.line(self._pace)) is not None:
            self.message(line)
