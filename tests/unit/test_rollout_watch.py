"""The processes of an engine: whose end is the engine's, in its start and later, and whose is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from prime_megatron.errors import EngineDied, RunError
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.leftovers import kill_group, wait_for_end
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member

Make = Callable[[str], EngineProcess]
WATCHED_S = 1.5
"""Several looks of the watch."""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[EngineProcess] = []

    def process(below: str) -> EngineProcess:
        settings = DriverSettings(
            model_path="", device="cpu", dtype="float32", tensor=1, max_tokens=20, max_concurrent=8,
            end_token_ids=(1,), seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1,
            can_sleep=True, start_timeout_s=240.0,
            extra={"below": below, "broken": False, "dead": False, "once": str(tmp_path / "once")},
        )  # fmt: skip
        made.append(EngineProcess("tests.support.worker_driver.WorkerDriver", settings, {}, tmp_path / "engine.log"))
        return made[-1]

    yield process
    for one in made:
        one.kill()


def worker(process: EngineProcess) -> int:
    """The one that sleeps for ever: the youngest."""
    return max(psutil.Process(process.pid).children(), key=psutil.Process.create_time).pid


def test_a_worker_killed_in_the_start_ends_the_start(make: Make, tmp_path: Path) -> None:
    with pytest.raises(EngineDied, match=r"worker-7, a process of the engine, ended \(exit code -9\)"):
        make("one that dies in the start")
    assert "ending: worker-7" in (tmp_path / "engine.log").read_text()


@pytest.mark.parametrize("below", ["one that ends in the start", "a compiler that ends"])
def test_a_process_that_ends_in_order_is_no_death(make: Make, below: str) -> None:
    process = make(below)
    time.sleep(WATCHED_S)
    process.call("wake", timeout_s=60.0, tags=[])


def test_a_worker_killed_while_nothing_is_asked_is_named_at_the_next_call(make: Make) -> None:
    process = make("one that lives")
    pid = worker(process)
    os.kill(pid, signal.SIGKILL)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    with pytest.raises(EngineDied, match=rf"process {pid} of the engine \(.*multiprocessing.*\) ended"):
        process.call("wake", timeout_s=60.0, tags=[])


def test_the_end_of_a_group_is_waited_for_but_not_for_ever() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    assert wait_for_end(sleeper.pid, 0.2) == [sleeper.pid]
    kill_group(sleeper.pid)
    assert wait_for_end(sleeper.pid, 60.0) == []
    assert sleeper.wait() == -signal.SIGKILL


def test_a_silent_leader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object, **named: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]\nmuch more")

    monkeypatch.setattr(dist, "broadcast_object_list", closed)
    place = Member(replica=2, num_replicas=3, tensor_rank=1, leader=4, group=dist.GroupMember.NON_GROUP_MEMBER)
    with pytest.raises(RunError, match=r"^rollout engine 2: no word from rank 4, .*: Connection closed by peer \S+$"):
        place.agree(lambda: 0)
