"""A job script run under stand-ins for srun and scontrol: two "nodes" meet, are warned, requeue, resume and finish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.resume_runs import assert_same, at, outcome, toy, train

ROOT = Path(__file__).parents[2]
STEPS = 8

SRUN = """#!/usr/bin/env bash
# Stand-in: every task is a process of this machine; signals are handed on; the highest exit code counts.
tasks=1
output=/dev/stdout
while [[ $1 == --* ]]; do
    case $1 in
    --ntasks=*) tasks=${1#*=} ;;
    --output=*) output=${1#*=} ;;
    esac
    shift
done
pids=()
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_NODEID=$i "$@" >>"${output//%n/$i}" 2>&1 &
    pids+=($!)
done
hand_on() { for pid in "${pids[@]}"; do kill -s "$1" "$pid"; done; }
trap 'hand_on USR1' USR1
trap 'hand_on TERM' TERM
worst=0
for pid in "${pids[@]}"; do
    while :; do
        wait "$pid"
        kill -0 "$pid" 2>/dev/null || break
    done
    wait "$pid"
    code=$?
    ((code > worst)) && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
"show hostnames") echo localhost; echo localhost ;;
requeue*) echo "$2" >>"$STAND_IN/requeued" ;;
*) exit 1 ;;
esac
"""


def attempt(script: Path, folder: Path, number: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STAND_IN": str(folder),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_RESTART_COUNT": str(number),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with (folder / "job.log").open("ab") as log:
        return subprocess.Popen(["bash", str(script)], env=environment, stdout=log, stderr=log)


def last_step(output: Path) -> int:
    log = output / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def job_script(config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = folder / "run.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "prime_megatron", "slurm", str(path), "--gpus-per-node", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return folder / "run.sbatch"


@pytest.mark.timeout(600)
def test_two_nodes_are_warned_and_continue(tmp_path: Path) -> None:
    config = toy(
        tmp_path,
        run={"steps": STEPS},
        checkpoint={"every": 0, "keep_last": 1},
        launch={"nodes": 2, "processes_per_node": 1},
    )
    assert train(config, 2) == {0}
    expected = outcome(tmp_path / "straight")

    output, stand_in = tmp_path / "out", tmp_path / "bin"
    script = job_script(at(config, output), stand_in)
    stale = subprocess.Popen(  # what an earlier attempt of this run left behind
        ["sleep", "600"], env={**os.environ, "PRIME_MEGATRON_RUN": str(output), "PRIME_MEGATRON_ATTEMPT": "4242-old"}
    )
    first = attempt(script, stand_in, 0)
    try:
        deadline = time.monotonic() + 200.0
        while last_step(output) < 2:
            assert first.poll() is None and time.monotonic() < deadline, (stand_in / "job.log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGUSR1)
        assert first.wait(timeout=100) == 85, (stand_in / "job.log").read_text()
    finally:
        first.kill()
        stale.kill()
    assert stale.wait() == -signal.SIGKILL
    assert (stand_in / "requeued").read_text().split() == ["4242"]
    stopped = last_step(output)
    assert 2 <= stopped < STEPS
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]

    second = attempt(script, stand_in, 1)
    try:
        assert second.wait(timeout=250) == 0, (stand_in / "job.log").read_text()
    finally:
        second.kill()
    assert_same(outcome(output), expected)
    attempts = sorted(path.name for path in (output / "logs").iterdir())
    assert attempts == ["job-4242-attempt-0", "job-4242-attempt-1"]
    said = "".join(path.read_text() for path in (output / "logs" / "job-4242-attempt-1").glob("node-*.log"))
    assert f"resumed after step {stopped}" in said


def test_an_unfit_node_ends_the_job(tmp_path: Path) -> None:
    """A node that sees another folder than the first one is named before anything is started."""
    config = toy(tmp_path, launch={"nodes": 2, "processes_per_node": 1})
    script = job_script(at(config, tmp_path / "out"), tmp_path / "bin")
    text = script.read_text()
    script.write_text(text.replace('touch "$logs/shared"', ":"))
    job = attempt(script, tmp_path / "bin", 0)
    assert job.wait(timeout=60) == 2
    checks = "".join(path.read_text() for path in (tmp_path / "out" / "logs").glob("*/check-*.log"))
    assert "is not the folder that the first node sees" in checks
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
