"""Real Slurm for these tests, a toy run, and what an undisturbed run comes to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import ENDS, Cluster, missing, until
from tests.support.resume_runs import at, outcome, toy

ROOT = Path(__file__).parents[2]
PAUSES = Path(__file__).with_name("pauses")


def open_folder() -> Path:
    """A folder that munged accepts: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="prime-slurm-"))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes: jobs take two, so that two jobs run at once and a lost node has a spare."""
    assert not missing(), f"not installed: {missing()}; run make test-slurm"
    folder = open_folder()
    made = Cluster(folder / "slurm", 4)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Toy:
    """A run of two processes, and its outcome when nothing disturbs it."""

    config: dict[str, Any]
    expected: dict[str, Any]


@pytest.fixture(scope="session")
def straight() -> Iterator[Toy]:
    folder = open_folder()
    config = toy(
        folder,
        run={"steps": 3},
        rollout={"oversample": 1.0},
        eval={"every": 0},
        checkpoint={"every": 1, "grace_s": 60.0},
        log={"tensorboard": False},
        launch={"nodes": 1, "processes_per_node": 2},
    )
    path = folder / "straight.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "prime_megatron", "train", str(path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240)
    yield Toy(config, outcome(folder / "straight"))
    shutil.rmtree(folder, ignore_errors=True)


class Job:
    """A rendered script, submitted.

    Args:
        cluster: where.
        config: the run's.
        folder: of this job alone: its config, script and log.
        options: of `prime-megatron slurm`.
        environment: of the run.
        start: submit it, not only write it.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: dict[str, Any],
        folder: Path,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        *,
        start: bool = True,
    ) -> None:
        self.cluster = cluster
        self.output = Path(config["run"]["output_dir"])
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        source = self.folder / "run.yaml"
        source.write_text(json.dumps(config))
        paths = {"PYTHONPATH": f"{PAUSES}:{ROOT}", "OMP_NUM_THREADS": "1", "PRIME_TEST_FOLDER": str(self.folder)}
        exports = "\n".join(
            f"export {key}={shlex.quote(value)}" for key, value in (paths | (environment or {})).items()
        )
        command = [sys.executable, "-m", "prime_megatron", "slurm", str(source), "--gpus-per-node", "0", "--time", "20",
                   "--warning", "120", "--setup", exports, *options]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.folder,
            env=cluster.environment | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.script = self.folder / "run.sbatch"
        self.id = self.submit() if start else ""

    def submit(self, *options: str) -> str:
        return self.cluster.sbatch(self.script, f"--output={self.folder}/job.log", *options, cwd=self.folder)

    @property
    def log(self) -> str:
        """The job's log, then those of its nodes: for a test's own message as well."""
        paths = [self.folder / "job.log", *sorted(self.output.glob("logs/*/node-*.log"))]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in paths if path.exists())

    def until_at(self, moment: str, timeout_s: float = 120.0) -> None:
        """Wait for the run to be held at a moment."""

        def there() -> bool:
            assert self.cluster.state(self.id) in ("PENDING", "RUNNING", "CONFIGURING"), self.log
            return (self.folder / f"at-{moment}").exists()

        until(there, timeout_s, f"moment {moment}")
        time.sleep(0.3)

    @property
    def nodes(self) -> list[str]:
        """Where it runs."""
        return self.cluster.ask("scontrol", "show", "hostnames", self.cluster.field(self.id, "NodeList")).split()

    def go(self) -> None:
        (self.folder / "go").touch()

    def ends(self, timeout_s: float = 180.0) -> str:
        """Wait for the job's end; returns its state."""
        return self.cluster.until_state(self.id, *ENDS, timeout_s=timeout_s)

    def ends_or_requeues(self, turn: int = 1, timeout_s: float = 180.0) -> str:
        """Wait for the job to be back in the queue for this turn (PENDING), or any end; returns the state."""

        def over() -> bool:
            state = self.cluster.state(self.id)
            if state == "PENDING":
                return self.cluster.field(self.id, "Restarts") == str(turn)
            return state in ENDS

        until(over, timeout_s, f"the end of job {self.id}")
        return self.cluster.state(self.id)

    def cancel(self) -> None:
        """End what was submitted, if it runs."""
        if not self.id:
            return
        self.cluster.ask("scancel", self.id)
        until(lambda: self.cluster.state(self.id) not in ("RUNNING", "PENDING", "COMPLETING"), 90, "the cancel")


def two_nodes(straight: Toy, folder: Path, **sections: Any) -> dict[str, Any]:
    """The toy on two nodes, a process each."""
    return at(straight.config, folder / "out", launch={"nodes": 2, "processes_per_node": 1}, **sections)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of one test, below which jobs write."""
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of docs/slurm.md, of the cells that ran."""
    table: dict[str, dict[str, str]] = {}
    for outcome_name in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome_name):
            if "test_cell[" in report.nodeid:
                name, _, moment = report.nodeid.partition("test_cell[")[2].rstrip("]").rpartition("-")
                said = dict(report.user_properties).get("cell", "FAILED")
                table.setdefault(name, {})[moment] = f"{said} ({report.duration:.0f} s)"
    moments = list(dict.fromkeys(moment for row in table.values() for moment in row))
    if not table:
        return
    terminalreporter.write_line("| | " + " | ".join(moments) + " |")
    terminalreporter.write_line("|" + "---|" * (len(moments) + 1))
    for name, row in table.items():
        terminalreporter.write_line(f"| {name} | " + " | ".join(row.get(moment, "") for moment in moments) + " |")
