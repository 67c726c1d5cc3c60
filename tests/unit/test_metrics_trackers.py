"""Trackers behind a queue: what they take, what they cost when they fail, and MLflow for real."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from prime_megatron.config.run import LogConfig
from prime_megatron.metrics.background import BackgroundSink
from prime_megatron.metrics.trackers import Mlflow, asked_for


class Notebook:
    """A tracker that notes what it is told; the steps of ``fails`` raise."""

    name = "Notebook"

    def __init__(self, fails: tuple[int, ...] = (), gate: threading.Event | None = None) -> None:
        self.fails = fails
        self.gate = gate
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.restored: int | None = None
        self.closed = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.gate is not None:
            self.gate.wait(60)
        if step in self.fails:
            raise ConnectionError(f"step {step}: refused\nwith details")
        self.rows.append((step, dict(numbers)))

    def restore(self, step: int) -> None:
        self.restored = step

    def close(self) -> None:
        self.closed = True


def test_finite_numbers_arrive_in_order_and_the_end_waits_for_them() -> None:
    tracker, warned = Notebook(), []
    sink = BackgroundSink(tracker, warned.append)
    sink.restore(2)
    for step in (3, 4):
        sink.log(step, {"a": step, "nan": math.nan, "inf": math.inf, "text": "x", "none": None, "flag": True})
    sink.close()
    assert tracker.rows == [(3, {"a": 3.0, "flag": 1.0}), (4, {"a": 4.0, "flag": 1.0})]
    assert tracker.restored == 2 and tracker.closed and warned == []


def test_a_failing_tracker_is_told_once_and_counted_at_the_end() -> None:
    tracker, warned = Notebook(fails=(1, 2)), []
    sink = BackgroundSink(tracker, warned.append)
    for step in range(1, 5):
        sink.log(step, {"a": 1.0})
    sink.close()
    assert [step for step, _ in tracker.rows] == [3, 4]  # it goes on when the server is back
    assert len(warned) == 2
    assert warned[0].startswith("Notebook: ConnectionError: step 1: refused; the run goes on")
    assert warned[1].startswith("Notebook lacks 2 of 4 steps")


def test_a_server_that_does_not_answer_holds_nothing_up() -> None:
    gate = threading.Event()
    tracker, warned = Notebook(gate=gate), []
    sink = BackgroundSink(tracker, warned.append, close_s=0.2, max_waiting=3)
    begun = time.monotonic()
    for step in range(1, 20):
        sink.log(step, {"a": 1.0})
    sink.close()
    assert time.monotonic() - begun < 30  # the gate would hold it for 60 a step
    gate.set()
    assert "steps wait for it" in warned[0]
    assert "did not take the last figures within 0.2 s" in warned[1] or "lacks" in warned[1]
    assert warned[-1].startswith("Notebook lacks 19 of 19 steps")


def test_a_run_that_logged_nothing_opens_nothing() -> None:
    tracker = Notebook()
    BackgroundSink(tracker, pytest.fail).close()
    assert not tracker.closed


def test_mlflow_keeps_figures_and_config_and_a_resumed_run_goes_on_in_the_same_run(tmp_path: Path) -> None:
    """The real package on a SQLite file."""
    import mlflow

    config = {"run": {"seed": 3, "name": "n"}, "prm": {"betas": [0.9, 0.98]}, "log": {"x": None}}
    for restored, step in ((None, 1), (1, 2)):
        tracker = Mlflow(tmp_path, "experiment", "name", config, uri=None)
        if restored is not None:
            tracker.restore(restored)
        tracker.log(step, {"eval/pass@4": 0.25 * step, **{f"many/{index}": 1.0 for index in range(150)}})
        tracker.close()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "name"
    assert run.data.params == {"run.seed": "3", "run.name": "n", "prm.betas": "[0.9, 0.98]", "log.x": "None"}
    history = client.get_metric_history(run.info.run_id, "eval/pass_4")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert run.data.metrics["many/149"] == 1.0
    assert (tmp_path / "mlflow_run_id.txt").read_text().strip() == run.info.run_id


def test_mlflow_on_a_dead_server_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warned: list[str] = []
    sink = BackgroundSink(Mlflow(tmp_path, "e", "n", {}, uri="http://127.0.0.1:9"), warned.append)
    sink.log(1, {"a": 1.0})
    sink.close()
    assert warned[0].startswith("MLflow: MlflowException: ") and "127.0.0.1" in warned[0]
    assert warned[1].startswith("MLflow lacks 1 of 1 steps")
    assert list(tmp_path.iterdir()) == []


def test_offline_sends_nothing_to_the_server_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for offline, names in ((True, True), (False, False)):
        log = LogConfig(tensorboard=False, mlflow_experiment="e", offline=offline)
        (tracker,) = asked_for(tmp_path / str(offline), log, name="n", run_config={})
        if offline:
            tracker.log(1, {"a": 1.0})
            tracker.close()
        assert (tmp_path / str(offline) / "mlflow" / "mlflow.db").exists() == names
