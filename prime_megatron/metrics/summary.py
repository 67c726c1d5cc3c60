"""summary.json and the closing table."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prime_megatron.metrics.jsonl import plain

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """The figures of a finished run; None where the run did not measure one."""

    steps: int
    seed: int
    accuracy_before: float | None
    """Held-out greedy accuracy before the first step, in [0, 1]."""
    accuracy_after: float | None
    prm_accuracy: float | None
    """Share of rollouts whose outcome the PRM tells right before its update, mean of the last steps."""
    tokens_per_s: float | None
    """Tokens of the trained batches (prompt and response) per second of the steps."""
    stage_seconds: Mapping[str, float]
    """Seconds of each stage over all steps."""
    wall_s: float
    """Seconds of all steps."""
    engine_restarts: int = 0
    """Deaths of engines' processes that the run survived."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """More figures, by name."""
    files: tuple[str, ...] = ()
    """What the run wrote."""


def write_summary(output_dir: Path, summary: Summary) -> Path:
    """Write summary.json: a temporary file renamed into place, so that a reader never sees half of one."""
    path = output_dir / SUMMARY_FILE
    fields = dataclasses.asdict(summary)
    fields["stage_seconds"] = {k: plain(v, k) for k, v in summary.stage_seconds.items()}
    fields["figures"] = {k: plain(v, k) for k, v in summary.figures.items()}
    row = {k: v if isinstance(v, dict) else plain(v, k) for k, v in fields.items()}
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(row, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """The closing table: accuracy before and after, PRM accuracy, tokens/s, the share of each stage, the files."""
    target = Console() if console is None else console
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("held-out accuracy before", _percent(summary.accuracy_before))
    table.add_row("held-out accuracy after", _percent(summary.accuracy_after))
    table.add_row("PRM accuracy", _percent(summary.prm_accuracy))
    table.add_row("tokens/s", "-" if summary.tokens_per_s is None else f"{summary.tokens_per_s:,.0f}")
    table.add_row("steps", f"{summary.steps} in {summary.wall_s:,.1f} s")
    if summary.engine_restarts:
        table.add_row("engine restarts", str(summary.engine_restarts))
    table.add_section()
    for stage, seconds in summary.stage_seconds.items():
        table.add_row(stage, f"{_share(seconds, summary.wall_s)}  {seconds:,.1f} s")
    table.add_row("(between stages)", _between(summary))
    target.print(table)
    if summary.files:
        target.print(Text("written:"))
        for name in summary.files:
            target.print(Text(f"  {name}"), soft_wrap=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(seconds: float, wall_s: float) -> str:
    return f"{100 * seconds / wall_s:.1f} %" if wall_s > 0 else "-"


def _between(summary: Summary) -> str:
    seconds = max(0.0, summary.wall_s - sum(summary.stage_seconds.values()))
    return f"{_share(seconds, summary.wall_s)}  {seconds:,.1f} s"
