"""The launcher: who is started, which exit code comes back, what is printed, how signals travel."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import prime_megatron
from prime_megatron.cli.launch import Rendezvous, first_failure, rendezvous_of, start, verdict
from prime_megatron.cli.worker import run_worker
from prime_megatron.config import LaunchConfig
from prime_megatron.errors import InputError

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from prime_megatron.cli.main import _stopped
from prime_megatron.cli.worker import run_worker
from prime_megatron.errors import InputError, RunError
from prime_megatron.run.signals import STOP_SIGNALS, heard

mode, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])


def after_the_other():
    # A lost connection is a consequence: it comes after its cause.
    while not (folder / "ending").exists():
        time.sleep(0.02)
    time.sleep(0.5)


def body():
    if mode == "environment":
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS GROUP_RANK".split()
        names.append("CUDA_DEVICE_MAX_CONNECTIONS")
        (folder / str(rank)).write_text(json.dumps({name: os.environ[name] for name in names}))
    if mode == "input":
        raise InputError("data.jsonl, row 3: no ground truth")
    if mode == "input on rank 1":
        if rank == 1:
            raise InputError("data.jsonl, row 3: no ground truth")
        time.sleep(60)
    if mode == "bug":
        if rank == 1:
            (folder / "ending").touch()
            raise ValueError("the cause")
        after_the_other()
        raise RunError("lost connection")
    if mode == "killed":
        if rank == 1:
            (folder / "ending").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        after_the_other()
        raise RunError("lost connection")
    if mode == "requeue":
        return 85
    if mode == "odd":
        return 7 if rank == 0 else 0
    if mode == "save":
        stopped = []
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: stopped.append(number))
        (folder / f"ready{rank}").touch()
        while not stopped:
            time.sleep(0.02)
        time.sleep(0.5 * rank)
        (folder / f"saved{rank}").write_text(signal.Signals(stopped[0]).name)
        return 85
    if mode == "engine":
        from prime_megatron.rollout.process.driver import DriverSettings
        from prime_megatron.rollout.process.process import EngineProcess

        settings = DriverSettings(
            model_path="", device="cpu", dtype="float32", tensor=1, max_tokens=8, max_concurrent=8, end_token_ids=(1,),
            seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1, can_sleep=True,
            extra={"broken": False, "dead": False, "once": ""},
        )
        engine = EngineProcess("tests.support.echo_driver.EchoDriver", settings, {}, folder / f"engine{rank}.log")
        (folder / f"pids{rank}").write_text(f"{os.getpid()} {engine.pid}")
        (folder / f"ready{rank}").touch()
        time.sleep(60)
    if mode == "early":
        with heard(STOP_SIGNALS, _stopped):
            (folder / f"ready{rank}").touch()
            time.sleep(60)
    return 0


sys.exit(run_worker(body))
"""

LAUNCHER = """
import json, sys
from prime_megatron.cli.launch import Rendezvous, start
from prime_megatron.config import LaunchConfig

launch, rendezvous, command = json.loads(sys.argv[1])
command = [sys.executable, *command]
sys.exit(start(command, lambda: 99, LaunchConfig(**launch), Rendezvous(**rendezvous), stop_signal="USR1"))
"""

ALONE = {"endpoint": None, "node_rank": None, "run_id": "test", "timeout_s": 60}


def launcher(tmp_path: Path, mode: str, launch: dict | None = None, rendezvous: dict | None = None) -> subprocess.Popen:
    """The launcher as a process of its own: it sets signal handlers and environment variables."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    job = [launch or {"processes_per_node": 2}, rendezvous or ALONE, [str(script), mode, str(tmp_path)]]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The worker is a script elsewhere; it needs the package without an installation, too.
        env=os.environ | {"PYTHONPATH": str(Path(prime_megatron.__file__).parent.parent)},
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, stderr)."""
    try:
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, err


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_workers(process: subprocess.Popen, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        assert process.poll() is None, f"ended early: {finish(process)}"
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)


def test_ranks_and_engines_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    process = launcher(tmp_path, "engine")
    wait_for_workers(process, tmp_path)
    pids = [int(pid) for rank in range(2) for pid in (tmp_path / f"pids{rank}").read_text().split()]
    assert len(pids) == 4 and all(lives(pid) for pid in pids)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(lives(pid) for pid in pids)


def test_every_rank_gets_its_place(tmp_path: Path) -> None:
    assert finish(launcher(tmp_path, "environment", {"processes_per_node": 3})) == (0, "")
    places = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [(place["RANK"], place["LOCAL_RANK"], place["WORLD_SIZE"]) for place in places] == [
        ("0", "0", "3"), ("1", "1", "3"), ("2", "2", "3"),
    ]  # fmt: skip
    assert {place["MASTER_ADDR"] for place in places} == {"127.0.0.1"}
    assert {place["OMP_NUM_THREADS"] for place in places} == {"1"}
    assert {place["CUDA_DEVICE_MAX_CONNECTIONS"] for place in places} == {"1"}  # Megatron's overlap needs it


@pytest.mark.parametrize("mode", ["input", "input on rank 1"])
def test_bad_input_is_said_once_whoever_finds_it(tmp_path: Path, mode: str) -> None:
    assert finish(launcher(tmp_path, mode)) == (2, "error: data.jsonl, row 3: no ground truth\n")


def test_first_failure_is_told_and_the_ones_that_follow_are_not(tmp_path: Path) -> None:
    code, err = finish(launcher(tmp_path, "bug"))
    assert code == 1
    assert "ValueError: the cause" in err
    assert "lost connection" not in err
    assert err.count("Traceback") == 1
    assert err.splitlines()[-1].startswith("error: rank 1 ")


def test_killed_rank_is_named(tmp_path: Path) -> None:
    code, err = finish(launcher(tmp_path, "killed"))
    assert code == 1
    assert err.startswith("error: rank 1 ")
    assert "killed by SIGKILL" in err
    assert err.count("\n") == 1


def test_requeue_passes_through_in_silence(tmp_path: Path) -> None:
    assert finish(launcher(tmp_path, "requeue")) == (85, "")


def test_unknown_exit_code_becomes_1(tmp_path: Path) -> None:
    code, err = finish(launcher(tmp_path, "odd"))
    assert code == 1
    assert "ended with exit code 7" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signal_reaches_every_worker_and_all_may_save(tmp_path: Path, number: signal.Signals) -> None:
    process = launcher(tmp_path, "save")
    wait_for_workers(process, tmp_path)
    process.send_signal(number)
    assert finish(process) == (85, "")
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [number.name] * 2


def test_stop_signal_before_the_trainer_listens_asks_for_requeue(tmp_path: Path) -> None:
    process = launcher(tmp_path, "early")
    wait_for_workers(process, tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert finish(process) == (85, "")


def test_interrupt_ends_every_process(tmp_path: Path) -> None:
    process = launcher(tmp_path, "early")
    wait_for_workers(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "")


@pytest.mark.parametrize("static", [False, True])
def test_two_nodes_meet(tmp_path: Path, static: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    nodes = [
        launcher(
            tmp_path,
            "environment",
            {"nodes": 2, "processes_per_node": 1},
            {"endpoint": endpoint, "node_rank": node if static else None, "run_id": "test", "timeout_s": 60},
        )
        for node in range(2)
    ]
    ended = [finish(node) for node in nodes]
    assert [code for code, _ in ended] == [0, 0]
    # The store lives with node 0: torch warns on node 1 when it ends first. The launcher itself says nothing.
    assert not any(line.startswith("error") for _, text in ended for line in text.splitlines())
    places = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [(place["GROUP_RANK"], place["LOCAL_RANK"], place["WORLD_SIZE"]) for place in places] == [
        ("0", "0", "2"), ("1", "0", "2"),
    ]  # fmt: skip


def test_one_process_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "to be replaced")
    seen = {}

    def body() -> int:
        seen.update({name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")})
        return 85

    code = start(["no such program"], body, LaunchConfig(), Rendezvous(None, None, "x", 1), stop_signal="USR1")
    assert code == 85
    assert seen == {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


@dataclass
class Options:
    rdzv_endpoint: str | None = None
    node_rank: int | None = None
    rdzv_id: str = "x"
    rdzv_timeout_s: int = 1


def test_many_nodes_need_an_endpoint_and_a_rank_within_range() -> None:
    with pytest.raises(InputError, match="--rdzv-endpoint"):
        rendezvous_of(Options(), LaunchConfig(nodes=2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--node-rank 2"):
        rendezvous_of(Options("127.0.0.1:1", 2), LaunchConfig(nodes=2))  # type: ignore[arg-type]
    assert rendezvous_of(Options(), LaunchConfig(nodes=1)).endpoint is None  # type: ignore[arg-type]


@dataclass
class Failure:
    """As much of torch's ProcessFailure as is read."""

    exitcode: int
    timestamp: int = 100
    error_file: str = "<N/A>"
    pid: int = 1


def reported(tmp_path: Path, name: str, time_s: float, *, late: bool = False) -> Failure:
    path = tmp_path / name
    extra = {"timestamp": str(int(time_s)), "time_s": time_s, "exit_code": 86, "late": late}
    path.write_text(json.dumps({"message": {"message": name, "extraInfo": extra}}))
    return Failure(1, int(time_s), str(path))


def test_cause_comes_before_its_consequences(tmp_path: Path) -> None:
    # Within one second, in the order of the reports.
    assert first_failure({0: reported(tmp_path, "late", 100.9), 1: reported(tmp_path, "early", 100.1)}) == 1
    # A killed rank before those that lost it; the agent's own TERM last.
    failures = {0: reported(tmp_path, "lost", 90.0), 1: Failure(-15, 80), 2: Failure(-9, 100)}
    assert first_failure(failures) == 2
    assert first_failure({0: Failure(-15, 1), 1: Failure(2, 100)}) == 1
    # One that was stopped: the others waited for it, then the agent killed it.
    assert first_failure({0: reported(tmp_path, "late", 90.0, late=True), 1: Failure(-9, 80)}) == 0


def test_a_rank_that_was_ended_as_it_ended_keeps_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All ranks end alike; the first one's end has the agent kill the others, the first to report among them."""
    ended = reported(tmp_path, "starved", 100.0)
    ended.exitcode = -15
    later = reported(tmp_path, "starved too", 100.5)
    later.exitcode = 86
    assert verdict({0: later, 1: ended}, stop_seen=False) == 86
    assert capsys.readouterr().err == "error: starved\n"


def test_worker_without_our_launcher_speaks_on_rank_0_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def body() -> int:
        raise InputError("a line")

    for rank, text in (("0", "error: a line\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert run_worker(body) == 2
        assert capsys.readouterr().err == text
