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

from tests.slurm.cluster import Cluster, missing, until
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
    """Two nodes."""
    assert not missing(), f"not installed: {missing()}; run make test-slurm"
    folder = open_folder()
    made = Cluster(folder / "slurm")
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
        config: the run's; its output folder must lie in a folder of this job's own.
        options: of `prime-megatron slurm`.
        submit: of sbatch.
        environment: of the run.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: dict[str, Any],
        options: tuple[str, ...] = (),
        submit: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.cluster = cluster
        self.output = Path(config["run"]["output_dir"])
        self.folder = self.output.parent
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
        self.submit_options = (f"--output={self.folder}/job.log", *submit)
        self.id = self.submit()

    def submit(self, *options: str) -> str:
        return self.cluster.sbatch(self.script, *self.submit_options, *options, cwd=self.folder)

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

    def go(self) -> None:
        (self.folder / "go").touch()

    def ends(self, *states: str, timeout_s: float = 180.0) -> str:
        """Wait for one of the states, or any end."""
        return self.cluster.until_state(self.id, *states, timeout_s=timeout_s)

    def cancel(self) -> None:
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
