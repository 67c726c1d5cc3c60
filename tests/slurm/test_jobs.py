"""What SLURM and the job script make of a run: cancels, warnings, requeues, refusals, chains, what the log says.

The run itself is a stand-in here (a Python that only acts for `-m prime_megatron train`), so that a job takes seconds;
Slurm, srun, the job script and its requeue policy are real. test_matrix.py has real runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from tests.slurm.cluster import Cluster, can_isolate, until
from tests.slurm.conftest import ROOT, Job, Toy, two_nodes
from tests.support.resume_runs import assert_same, outcome

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

CONFIG: dict[str, Any] = {
    "models": {"policy": {"path": "m"}},
    "data": {"train": ["t"]},
    "checkpoint": {"grace_s": 60.0},
    "launch": {"nodes": 2, "processes_per_node": 1},
}
STAND_IN = """#!/bin/bash
# What follows is the part of `train`, on node $SLURM_NODEID.
if [ "$3" != train ]; then exec PYTHON "$@"; fi
"""
SAVED = "mkdir -p OUT/checkpoints/step-00000001; touch OUT/checkpoints/step-00000001/COMPLETE\n"
WAITS = "trap 'exit 85' USR1\ntouch FOLDER/runs-$SLURM_NODEID\nfor i in $(seq 600); do sleep 0.1; done\n"
HOLD = """\
import signal, sys, time
from pathlib import Path
from prime_megatron.run.lock import owned
signal.signal(signal.SIGUSR1, lambda *signal: sys.exit(85))
with owned(Path(sys.argv[1])):
    time.sleep(60)
"""


class Standing:
    """Submits jobs whose run is a stand-in.

    Args:
        cluster: where.
        folder: of this test.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.jobs: list[Job] = []

    def __call__(self, body: str, *options: str, name: str = "one", start: bool = True, **sections: Any) -> Job:
        folder = self.folder / name
        folder.mkdir()
        config = CONFIG | {"run": {"name": name, "output_dir": str(folder / "out"), "steps": 9}} | sections
        words = {"PYTHON": sys.executable, "FOLDER": str(folder), "OUT": config["run"]["output_dir"]}
        text = STAND_IN + body
        for word, value in words.items():
            text = text.replace(word, value)
        python = folder / "python"
        python.write_text(text)
        python.chmod(0o755)
        job = Job(self.cluster, config, folder, ("--python", str(python), *options), start=start)
        self.jobs.append(job)
        return job

    def until_it_runs(self, job: Job) -> None:
        until(lambda: len(list(job.folder.glob("runs-*"))) == 2, 60, "the tasks")
        time.sleep(0.3)


@pytest.fixture
def submit(cluster: Cluster, folder: Path) -> Iterator[Standing]:
    standing = Standing(cluster, folder)
    yield standing
    for job in standing.jobs:
        job.cancel()


def test_a_cancel_is_a_cancel(submit: Standing) -> None:
    job = submit(WAITS)
    submit.until_it_runs(job)
    submit.cluster.tell("scancel", job.id)
    assert job.ends_or_requeues() == "CANCELLED", job.log
    assert "TERM received, saving" in job.log
    assert "SLURM ends the job (a cancel)" in job.log and "back into the queue" not in job.log
    assert "does not requeue" not in job.log


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_warning_saves_and_requeues(submit: Standing, name: str) -> None:
    """TERM to the script alone: srun would kill its tasks at TERM."""
    job = submit(WAITS.replace("exit 85", "sleep 1; exit 85"))
    submit.until_it_runs(job)
    submit.cluster.tell("scancel", "--batch", f"--signal={name}", job.id)
    assert job.ends_or_requeues() == "PENDING", job.log
    assert f"{name} received, saving" in job.log and "back into the queue" in job.log
    frightening = [line for line in job.log.splitlines() if "rror" in line and not line.startswith("slurmstepd-")]
    assert not frightening and "Killed" not in job.log, job.log  # slurmstepd says CANCELLED of what is requeued


@pytest.mark.parametrize("when", ["setup", "tasks without handlers"])
def test_an_early_warning_requeues(submit: Standing, when: str) -> None:
    if when == "setup":
        job = submit(WAITS, "--setup", "touch $SLURM_SUBMIT_DIR/early; sleep 3")
        until(lambda: (job.folder / "early").exists(), 60, "the setup")
    else:
        job = submit(WAITS.replace("trap 'exit 85' USR1", "trap - USR1"))
        submit.until_it_runs(job)
    submit.cluster.tell("scancel", "--batch", "--signal=USR1", job.id)
    assert job.ends_or_requeues() == "PENDING", job.log
    assert (when == "setup") == ("asked to stop before the start" in job.log)


def test_attempts_without_a_newer_checkpoint_come_to_an_end(submit: Standing) -> None:
    job = submit("exit 85")
    for turn in (1, 2):
        assert job.ends_or_requeues(turn) == "PENDING", job.log
        submit.cluster.let_run(job.id)
        until(lambda: submit.cluster.state(job.id) != "PENDING", 60, "the next attempt")
    assert job.ends() == "FAILED", job.log
    assert "3 attempts in a row ended without a newer checkpoint" in job.log


@pytest.mark.parametrize(
    ("code", "saves", "state", "exit_code"),
    [(0, False, "COMPLETED", "0:0"), (2, True, "FAILED", "2:0"), (86, True, "FAILED", "86:0"),
     (1, False, "FAILED", "1:0"), (1, True, "PENDING", "")],
)  # fmt: skip
def test_who_is_requeued(submit: Standing, code: int, saves: bool, state: str, exit_code: str) -> None:
    """A lost node looks like a failed run: it is requeued where a newer checkpoint is there."""
    job = submit(f"{SAVED if saves else ''}[ $SLURM_NODEID = 1 ] && echo 'error: boom' >&2\nexit {code}")
    assert job.ends_or_requeues() == state, job.log
    if exit_code:
        assert submit.cluster.field(job.id, "ExitCode") == exit_code
    said = (job.folder / "job.log").read_text()
    assert ("node-1.log:error: boom" in said) == (code in (1, 2, 86)), job.log


def test_a_chain_ends_with_its_run(submit: Standing) -> None:
    """86 with --no-requeue becomes 0: the rest of the chain is dropped, as after a run that is done."""
    body = "n=$(ls -d OUT/logs/job-* | wc -l)\n[ $n -eq 1 ] && exit 85\nexit 86"
    job = submit(body, "--no-requeue", name="chained", start=False)
    subprocess.run(
        [str(ROOT / "examples" / "slurm" / "chain.sh"), "4", str(job.script), f"--output={job.folder}/job.log"],
        check=True, env=submit.cluster.environment, cwd=job.folder, capture_output=True,
    )  # fmt: skip
    until(lambda: not submit.cluster.ask("squeue", "-h", "-n", "chained"), 60, "the chain")
    assert len(list(job.output.glob("logs/job-*"))) == 2, job.log
    assert "the next job of the chain continues" in job.log and "the run ended itself" in job.log


def test_another_job_is_told_who_owns_the_folder(submit: Standing) -> None:
    """By the script, before any process starts; the owner runs on. A job of the same name waits."""
    hold = submit.folder / "hold.py"
    hold.write_text(HOLD)
    first = submit(f"[ $SLURM_NODEID = 0 ] && exec PYTHON {hold} OUT\n{WAITS}", name="first")
    until(lambda: (first.output / ".prime-megatron-owner").exists(), 60, "the lock")
    second = submit(WAITS, name="second", run={"name": "second", "output_dir": str(first.output), "steps": 9})
    again = first.submit()
    assert second.ends() == "FAILED"
    said = (second.folder / "job.log").read_text()
    assert (
        f"error: run.output_dir: {first.output} belongs to another run: job {first.id} (attempt 0), host node" in said
    )
    assert not list(second.folder.glob("runs-*"))
    assert submit.cluster.state(again) == "PENDING"
    submit.cluster.tell("scancel", again)
    assert submit.cluster.state(first.id) == "RUNNING"
    submit.cluster.tell("scancel", "--batch", "--signal=USR1", first.id)
    assert first.ends_or_requeues() == "PENDING", first.log


def test_a_second_submission_waits_and_finds_the_run_done(submit: Standing) -> None:
    done = '{"steps": 9, "exported": true}'
    job = submit(f"touch FOLDER/runs-$SLURM_NODEID\nsleep 2\necho '{done}' > OUT/.prime-megatron-done\nexit 0")
    again = job.submit()
    submit.until_it_runs(job)
    assert submit.cluster.state(again) == "PENDING"
    assert job.ends() == "COMPLETED", job.log
    job.id = again
    assert job.ends() == "COMPLETED", job.log
    assert "all 9 steps are done; nothing to run" in job.log
    assert not list(job.output.glob(f"logs/job-{again}-*/node-*.log"))


def test_what_an_earlier_attempt_left_is_ended(submit: Standing) -> None:
    job = submit("[ ${SLURM_RESTART_COUNT:-0} = 1 ] && exit 0\n(setsid sleep 300 &)\nexit 85")
    assert job.ends_or_requeues() == "PENDING", job.log
    submit.cluster.let_run(job.id)
    until(lambda: submit.cluster.state(job.id) != "PENDING", 60, "the second attempt")
    assert job.ends() == "COMPLETED", job.log
    assert "left by an earlier attempt" in job.log


def test_an_environment_that_sbatch_does_not_export(submit: Standing) -> None:
    job = submit("exit 0", start=False)
    job.id = job.submit("--export=NONE")
    assert job.ends() == "COMPLETED", job.log


def test_a_job_has_all_memory_and_cores_of_its_nodes(submit: Standing) -> None:
    job = submit("grep Cpus_allowed_list /proc/self/status > FOLDER/cores-$SLURM_NODEID\n" + WAITS)
    submit.until_it_runs(job)
    assert "mem=8000M" in submit.cluster.field(job.id, "TRES"), submit.cluster.field(job.id, "TRES")
    cores = Path("/proc/self/status").read_text().partition("Cpus_allowed_list:")[2].split()[0]
    assert all(path.read_text().split()[1] == cores for path in job.folder.glob("cores-*"))


def test_nodes_that_do_not_share_the_folder(folder: Path) -> None:
    if not can_isolate():
        pytest.skip("this machine does not let nodes have mounts of their own")
    private = folder / "private"
    private.mkdir()
    cluster = Cluster(folder / "slurm", private=private)
    try:
        cluster.start()
        submit = Standing(cluster, folder)
        job = submit("exit 0", run={"name": "x", "output_dir": str(private / "out"), "steps": 9})
        assert cluster.until_state(job.id) == "FAILED", job.log
        assert cluster.field(job.id, "ExitCode") == "2:0"
        assert "is not the folder that the first node sees" in job.log
    finally:
        cluster.stop()


def test_every_option_is_accepted(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for key in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(key, cluster.environment[key])
    monkeypatch.chdir(ROOT)
    options = ["launch.nodes=2", "run.name='a b\n#SBATCH --nodes=99'", "--gpus-per-node", "0", "--time", "1-00:00:00"]
    words = ["comment=two words", "mail-type=END", "nice=5", "spread-job", "cpus-per-task=2", "exclude=node4"]
    extra = [f"--sbatch={word}" for word in words]
    out = folder / "with space.sbatch"
    assert main(["slurm", "examples/slurm/run.yaml", *options, *extra, "--check", "--output", str(out)]) == 0
    assert "Job" in capsys.readouterr().out
    assert main(["slurm", "examples/slurm/run.yaml", *options, "--sbatch", "qos", "--check", "--output", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: --check:")


def test_srun_starts_ranks_or_is_refused(cluster: Cluster, straight: Toy, folder: Path) -> None:
    config = folder / "run.yaml"
    config.write_text(json.dumps(two_nodes(straight, folder)))
    train = [sys.executable, "-m", "prime_megatron", "train", str(config)]
    environment = cluster.environment | {"PYTHONPATH": str(ROOT)}
    refused = subprocess.run(["srun", "-N2", "--ntasks=4", *train], env=environment, capture_output=True, text=True,
                             check=False, timeout=120)  # fmt: skip
    assert refused.returncode == 2
    assert "srun started 4 tasks on 2 nodes" in refused.stderr
    assert not (folder / "out").exists()
    subprocess.run(
        ["srun", "-N2", "--ntasks=2", "--ntasks-per-node=1", *train], env=environment, check=True, timeout=200
    )
    assert_same(outcome(folder / "out"), straight.expected)
