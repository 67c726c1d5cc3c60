"""Signal x moment: every cell ends as it should, and what resumes equals the undisturbed run to the last bit.

`make test-slurm` runs four cells; `make test-slurm-matrix` all of them, and prints the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, until
from tests.slurm.conftest import ROOT, Job, Toy, two_nodes
from tests.support.resume_runs import assert_same, at, outcome
from tests.support.sft_runs import assert_same as assert_same_sft
from tests.support.sft_runs import outcome as sft_outcome
from tests.support.sft_runs import sft_config

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

MOMENTS = ("start", "rendezvous", "engine", "rollout", "update", "save", "export")


def batch_signal(name: str) -> Callable[[Job], None]:
    def send(job: Job) -> None:
        job.cluster.tell("scancel", "--batch", f"--signal={name}", job.id)

    return send


def cancel(job: Job) -> None:
    job.cluster.tell("scancel", job.id)


def requeue(job: Job) -> None:
    job.cluster.tell("scontrol", "requeue", job.id)


def suspend(job: Job) -> None:
    job.cluster.tell("scontrol", "suspend", job.id)
    time.sleep(5)
    job.cluster.tell("scontrol", "resume", job.id)


def lose_node(job: Job) -> None:
    job.cluster.power_off(job.nodes[1])


SIGNALS: dict[str, Callable[[Job], None]] = {
    "USR1": batch_signal("USR1"),
    "TERM": batch_signal("TERM"),
    "scancel": cancel,
    "requeue": requeue,
    "suspend": suspend,
    "node lost": lose_node,
}
IN_CI = {("USR1", "start"), ("USR1", "rollout"), ("scancel", "rollout"), ("node lost", "rollout")}


def cells() -> list[object]:
    return [
        pytest.param(name, moment, id=f"{name}-{moment}", marks=() if (name, moment) in IN_CI else pytest.mark.matrix)
        for name in SIGNALS
        for moment in MOMENTS
    ]


@pytest.mark.parametrize(("name", "moment"), cells())
def test_cell(name: str, moment: str, cluster: Cluster, straight: Toy, folder: Path, record_property: object) -> None:
    job = Job(cluster, two_nodes(straight, folder), folder, environment={"PRIME_TEST_MOMENT": moment})
    try:
        job.until_at(moment)
        SIGNALS[name](job)
        job.go()
        result = after(name, job)
        assert_same(outcome(job.output), straight.expected)
        if name != "node lost":  # the others may say what they lost
            assert "Traceback" not in (folder / "job.log").read_text(), job.log
    finally:
        job.cancel()
        cluster.power_on_all()
    assert callable(record_property)
    record_property("cell", result)


def after(name: str, job: Job) -> str:
    """Check what SLURM does with the job, let it come to its end; returns what the table says."""
    if name == "suspend":
        assert job.ends() == "COMPLETED", job.log
        assert job.cluster.field(job.id, "Restarts") == "0", job.log
        return "goes on"
    if name == "scancel":
        assert job.ends() == "CANCELLED", job.log
        time.sleep(3)
        assert job.cluster.state(job.id) == "CANCELLED", job.log
        job.id = job.submit()
        assert job.ends() == "COMPLETED", job.log
        return "CANCELLED"
    if name == "node lost":
        # Down after SlurmdTimeout: SLURM requeues the job, on a spare node.
        assert job.ends_or_requeues() == "PENDING", job.log
    else:
        assert job.ends_or_requeues() == "PENDING", job.log
    job.cluster.let_run(job.id)
    until(lambda: job.cluster.state(job.id) != "PENDING", 60, "the second attempt")
    assert job.ends() == "COMPLETED", job.log
    return "queue"


@pytest.mark.matrix
def test_a_supervised_run_is_warned_and_continues(cluster: Cluster, folder: Path) -> None:
    """The same script, signals and exit codes as a run of `train`."""
    base = sft_config(folder)
    base |= {"checkpoint": {"every": 0, "grace_s": 60.0}, "launch": {"nodes": 1, "processes_per_node": 2}}
    config = folder / "straight.yaml"
    config.write_text(json.dumps(base))
    command = [sys.executable, "-m", "prime_megatron", "sft", str(config)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240)
    two = at(base, folder / "out", launch={"nodes": 2, "processes_per_node": 1})
    job = Job(cluster, two, folder, environment={"PRIME_TEST_MOMENT": "sft step"})
    try:
        job.until_at("sft step")
        SIGNALS["USR1"](job)
        job.go()
        after("USR1", job)
        assert "resumed after step 2" in job.log
        assert_same_sft(sft_outcome(folder / "out"), sft_outcome(folder / "straight"))
    finally:
        job.cancel()
