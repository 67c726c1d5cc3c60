"""Experiment trackers: TensorBoard, Weights & Biases, MLflow. None of them can stop a run, or make it wait."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from prime_megatron.config import LogConfig
from prime_megatron.errors import InputError

TENSORBOARD_DIR = "tensorboard"
MLFLOW_DIR = "mlflow"
"""Below run.output_dir: MLflow's store where no server is asked for."""
MAX_BATCH = 100
"""Entries of one request to MLflow: its limit for parameters, 1,000 for metrics."""
MAX_PARAM = 500
"""Characters of a parameter that every release of MLflow takes."""


class Tracker(Protocol):
    """A service that keeps figures. Made in the run's own thread, where a missing package is told; everything else is
    called in the thread of a `background.BackgroundSink`, may wait, and may fail."""

    name: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Finite numbers of a step; the first call opens the tracker."""
        ...

    def restore(self, step: int) -> None:
        """The run goes on after this step; before the first `log`."""
        ...

    def close(self) -> None:
        """All is said."""
        ...


class TensorBoard:
    """TensorBoard events; a resumed run hides the events beyond its checkpoint (purge_step)."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        self._module = _import("tensorboard", "torch.utils.tensorboard", "log.tensorboard")
        self._directory = directory
        self._purge_step: int | None = None
        self._writer: Any = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._directory), purge_step=self._purge_step)
        for key, number in numbers.items():
            self._writer.add_scalar(key, number, step)
        self._writer.flush()

    def restore(self, step: int) -> None:
        self._purge_step = step + 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """Weights & Biases. The run's id is kept in wandb_id.txt, so that a resumed run goes on in the same one.

    The step is a metric of its own, the x axis: W&B's inner step may only grow, a resumed run's steps repeat.
    """

    name = "Weights & Biases"

    def __init__(self, directory: Path, project: str, name: str, config: Mapping[str, Any], *, offline: bool) -> None:
        self._wandb = _import("wandb", "wandb", "log.wandb_project")
        self._directory = directory
        self._settings = {"project": project, "name": name, "config": dict(config)}
        if offline:
            self._settings["mode"] = "offline"
        self._run: Any = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._run is None:
            run_id = kept_id(self._directory / "wandb_id.txt") or self._wandb.util.generate_id()
            keep_id(self._directory / "wandb_id.txt", run_id)
            self._run = self._wandb.init(id=run_id, resume="allow", dir=str(self._directory), **self._settings)
            self._run.define_metric("*", step_metric="step")
        self._run.log({"step": step, **numbers})

    def restore(self, step: int) -> None:
        """Nothing to cut: steps that repeat overwrite nothing and are drawn again at the same x."""

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class Mlflow:
    """MLflow, on a server or in a SQLite file below the output folder. The run's id is kept in mlflow_run_id.txt, so
    that a resumed run goes on in the same one; a step that repeats is drawn again at the same x.

    The config's keys are the run's parameters. MLflow's names have no "@": pass@4 is pass_4 there.
    """

    name = "MLflow"

    def __init__(
        self, directory: Path, experiment: str, name: str, config: Mapping[str, Any], *, uri: str | None
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of every run
        self._mlflow = _import("mlflow-skinny", "mlflow", "log.mlflow_experiment")
        self._directory = directory
        self._experiment = experiment
        self._run_name = name
        self._config = config
        self._store: Path | None = None
        if uri is None:
            self._store = directory / MLFLOW_DIR
            uri = f"sqlite:///{(self._store / 'mlflow.db').resolve()}"
        self._uri = uri
        if uri.startswith("sqlite:"):
            for package in ("sqlalchemy", "alembic"):
                _import(package, package, f"log.mlflow_experiment (store {uri})")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client: Any = None
        self._run_id = ""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._client is None:
            self._client = self._open()
        now_ms = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        rows = [metric(_mlflow_name(key), number, now_ms, step) for key, number in numbers.items()]
        for first in range(0, len(rows), MAX_BATCH):
            self._client.log_batch(self._run_id, metrics=rows[first : first + MAX_BATCH])

    def restore(self, step: int) -> None:
        """Nothing to cut: see the class."""

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id)

    def _open(self) -> Any:
        if self._store is not None:
            self._store.mkdir(parents=True, exist_ok=True)
        client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        file = self._directory / "mlflow_run_id.txt"
        if kept := kept_id(file):
            self._run_id = kept
            client.update_run(kept, status="RUNNING")
            return client
        found = client.get_experiment_by_name(self._experiment)
        location = None if self._store is None else self._store.resolve().as_uri()
        experiment = found.experiment_id if found else client.create_experiment(self._experiment, location)
        run_id = client.create_run(experiment, run_name=self._run_name).info.run_id
        parameter = self._mlflow.entities.Param
        rows = [parameter(key, value[:MAX_PARAM]) for key, value in flat(self._config)]
        for first in range(0, len(rows), MAX_BATCH):
            client.log_batch(run_id, params=rows[first : first + MAX_BATCH])
        keep_id(file, run_id)
        self._run_id = run_id
        return client


def asked_for(output_dir: Path, config: LogConfig, *, name: str, run_config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for; nothing is opened or written.

    Args:
        output_dir: the run's folder.
        config: the log section.
        name: run.name.
        run_config: the whole config as plain data.

    Raises:
        InputError: a package is not installed; names the key and the command that installs it.
    """
    found: list[Tracker] = []
    offline, server = config.offline, config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if config.tensorboard:
        found.append(TensorBoard(output_dir / TENSORBOARD_DIR))
    if config.wandb_project is not None:
        found.append(Wandb(output_dir, config.wandb_project, name, run_config, offline=offline))
    if config.mlflow_experiment is not None:
        found.append(Mlflow(output_dir, config.mlflow_experiment, name, run_config, uri=None if offline else server))
    return found


def finite(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers; a chart has no place for the rest."""
    return {k: float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value as text of every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def kept_id(file: Path) -> str:
    """The id that an attempt before this one noted; empty: none did."""
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def keep_id(file: Path, run_id: str) -> None:
    """Note it for the attempts to come."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(run_id + "\n", encoding="utf-8")


def _mlflow_name(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)


def _import(package: str, module: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{key}: the package {package} is not installed ({error}); run: pip install {package}"
        ) from None
