"""One call a step for every destination."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from prime_megatron.config import LogConfig
from prime_megatron.metrics.background import BackgroundSink
from prime_megatron.metrics.columns import Column
from prime_megatron.metrics.sinks import ConsoleSink, JsonlSink, Sink
from prime_megatron.metrics.slurm import SlurmCommentSink
from prime_megatron.metrics.status import WARNING, StatusSink
from prime_megatron.metrics.trackers import asked_for

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Hands each step's flat dict to its sinks; one without sinks (every rank but the first) does nothing.

    Use as a context manager, so that the console is left in order after an error.
    """

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks
        self._step: int | None = None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one step's metrics, once per step, steps growing; step 0 is before the first update.

        Args:
            step: the step that these numbers describe.
            values: name -> number, string, bool or None; 0-dim tensors and numpy scalars are read out.
        """
        assert self._step is None or step > self._step, f"step {step} after step {self._step}"
        self._step = step
        for sink in self._sinks:
            sink.log(step, values)

    def stage(self, name: str) -> None:
        """Show what is going on; fits `Clock`'s on_stage."""
        for sink in self._sinks:
            sink.stage(name)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show how far a stage has come."""
        self.stage(f"{name} {done}/{total}")

    def message(self, text: str) -> None:
        """Print a line on the console."""
        for sink in self._sinks:
            sink.message(text)

    def warn(self, text: str) -> None:
        """Print a warning on the console."""
        self.message(WARNING + text)

    def restore(self, step: int) -> None:
        """Go on after this step: metrics of later steps, written after the checkpoint, are dropped."""
        self._step = step
        for sink in self._sinks:
            sink.restore(step)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_metrics_log(
    output_dir: Path,
    config: LogConfig,
    *,
    rank: int,
    name: str,
    num_steps: int,
    columns: tuple[Column, ...],
    run_config: Mapping[str, Any],
    slurm_comment: bool,
    console: Console | None = None,
) -> MetricsLog:
    """The run's log: console, metrics.jsonl and what the config asks for, on rank 0; nothing on the others.

    Args:
        output_dir: the run's folder.
        config: the log section.
        rank: global rank of this process.
        name: run.name.
        num_steps: run.steps, for the progress line.
        columns: figures of the progress line (TRAIN_COLUMNS, SFT_COLUMNS).
        run_config: the whole config as plain data, for trackers.
        slurm_comment: launch.slurm_comment.
        console: where to print; none: standard output.

    Raises:
        InputError: a package that the config asks for is not installed.
    """
    if rank != 0:
        return MetricsLog(())
    shown: list[Sink] = [
        ConsoleSink(num_steps, columns, Console() if console is None else console),
        StatusSink(output_dir, name, num_steps, {column.key: column.label for column in columns}),
    ]
    told = MetricsLog(tuple(shown))
    sinks: list[Sink] = [*shown, JsonlSink(output_dir / METRICS_FILE)]
    for tracker in asked_for(output_dir, config, name=name, run_config=run_config):
        # Before those that it warns on, so that they are still there when it is closed.
        sinks.insert(0, BackgroundSink(tracker, told.warn))
    if slurm_comment and "SLURM_JOB_ID" in os.environ:
        sinks.append(SlurmCommentSink(os.environ["SLURM_JOB_ID"], num_steps))
    return MetricsLog(tuple(sinks))
