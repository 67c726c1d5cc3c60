"""Where metrics go: console, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prime_megatron.errors import InputError
from prime_megatron.metrics.jsonl import JsonlFile, format_line, plain

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


@dataclass(frozen=True)
class Column:
    """One figure of the progress line."""

    key: str
    """The metric."""
    label: str
    format: str
    """A format spec, such as ".3f"."""


TRAIN_COLUMNS = (
    Column("rollout/outcome", "outcome", ".3f"),
    Column("eval/accuracy", "eval", ".3f"),
    Column("prm/accuracy", "PRM acc", ".3f"),
    Column("policy/loss", "loss", ".4f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron train`; a figure that the step did not log is left out."""

SFT_COLUMNS = (
    Column("sft/loss", "loss", ".4f"),
    Column("eval/loss", "held-out loss", ".4f"),
    Column("eval/perplexity", "perplexity", ".3f"),
    Column("sft/grad_norm", "grad", ".2f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("speed/utilisation", "MFU", ".1%"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron sft`."""

PRM_COLUMNS = (
    Column("prm/accuracy", "PRM acc", ".3f"),
    Column("prm/pair_accuracy", "pairs", ".3f"),
    Column("eval/prm_accuracy", "held-out acc", ".3f"),
    Column("eval/prm_pair_accuracy", "held-out pairs", ".3f"),
    Column("prm/loss", "loss", ".4f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron prm`."""


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
    """Progress: on a terminal a line per step above a live status line; elsewhere plain lines with the time (UTC)."""

    def __init__(self, num_steps: int, columns: tuple[Column, ...], console: Console) -> None:
        self._num_steps = num_steps
        self._columns = columns
        self._console = console
        self._step = 0
        self._live: Live | None = None

    def log(self, step: int, values: Values) -> None:
        self._step = step
        parts = [f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}"]
        for column in self._columns:
            if column.key in values and values[column.key] is not None:
                parts.append(f"{column.label} {format(values[column.key], column.format)}")
        self.message("  ".join(parts))
        for line in breakdown_lines(values):
            self.message(f"  {line}")

    def stage(self, text: str) -> None:
        if not self._console.is_terminal:
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


class TensorBoardSink(FileSink):
    """TensorBoard events; a resumed run hides the events beyond its checkpoint (purge_step)."""

    def __init__(self, directory: Path) -> None:
        self._module = _import("tensorboard", "torch.utils.tensorboard", "log.tensorboard")
        self._directory = directory
        self._purge_step: int | None = None
        self._writer: Any = None

    def log(self, step: int, values: Values) -> None:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._directory), purge_step=self._purge_step)
        for key, number in _numbers(values).items():
            self._writer.add_scalar(key, number, step)
        self._writer.flush()

    def restore(self, step: int) -> None:
        assert self._writer is None, "restore comes before the first log"
        self._purge_step = step + 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink(FileSink):
    """Weights & Biases. The run's id is kept in wandb_id.txt, so that a resumed run goes on in the same one.

    The step is a metric of its own, the x axis: W&B's inner step may only grow, a resumed run's steps repeat.
    """

    def __init__(self, directory: Path, project: str, name: str, config: Mapping[str, Any]) -> None:
        wandb = _import("wandb", "wandb", "log.wandb_project")
        id_file = directory / "wandb_id.txt"
        run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else wandb.util.generate_id()
        directory.mkdir(parents=True, exist_ok=True)
        id_file.write_text(run_id + "\n", encoding="utf-8")
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", config=dict(config), dir=str(directory)
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Values) -> None:
        self._run.log({"step": step, **_numbers(values)})

    def restore(self, step: int) -> None:
        """Nothing to cut: steps that repeat overwrite nothing and are drawn again at the same x."""

    def close(self) -> None:
        self._run.finish()


def _numbers(values: Values) -> dict[str, float]:
    """The finite numbers; a chart has no place for the rest."""
    flat = {key: plain(value, key) for key, value in values.items()}
    return {k: float(v) for k, v in flat.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _import(package: str, module: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{key}: the package {package} is not installed ({error}); run: pip install {package}"
        ) from None
