"""The helper itself: results by rank, failures with their rank, timeouts, no leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import run_ranks


def _sum() -> dict[str, object]:
    x = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(x)
    return {"sum": x, "pid": os.getpid(), "rank": dist.get_rank()}


def _fail(bad: int) -> None:
    if dist.get_rank() == bad:
        raise ValueError("broken on purpose")
    dist.barrier()


def _die() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def _hang(path: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(f"{path}/{dist.get_rank()}", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    time.sleep(60)


def test_results_by_rank() -> None:
    results = run_ranks(_sum, 3)
    assert [r["rank"] for r in results] == [0, 1, 2]
    assert all(r["sum"].item() == 3.0 for r in results)
    assert not any(psutil.pid_exists(r["pid"]) for r in results)


def test_failure_names_its_rank() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^rank 1:.*broken on purpose"):
        run_ranks(_fail, 2, 1)


def test_death_is_noticed() -> None:
    with pytest.raises(RuntimeError, match=r"rank [01]"):
        run_ranks(_die, 2)


def test_timeout_leaves_nothing(tmp_path) -> None:
    with pytest.raises(TimeoutError, match="2 not done after"):
        run_ranks(_hang, 2, str(tmp_path), timeout_s=4.0)
    pids = [int(pid) for file in tmp_path.iterdir() for pid in file.read_text().split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 5  # killed children of killed ranks wait for init to reap them
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


@pytest.mark.parametrize("who", ["caller", "fork server"])
def test_ranks_and_their_children_end_with_the_caller_and_ranks_with_the_fork_server(tmp_path: Path, who: str) -> None:
    script = (
        f"from tests.distributed import test_ranks as t; t.run_ranks(t._hang, 2, {str(tmp_path)!r}, timeout_s=100.0)"
    )
    path = str(Path(__file__).parents[2])
    caller = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while len(files := [file for file in tmp_path.iterdir() if file.read_text()]) < 2:
            assert caller.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        ranks, children = zip(*([int(pid) for pid in file.read_text().split()] for file in files), strict=True)
        os.kill(caller.pid if who == "caller" else psutil.Process(ranks[0]).ppid(), signal.SIGKILL)
        deadline = time.monotonic() + 10
        gone = [*ranks, *children] if who == "caller" else ranks
        while any(_alive(pid) for pid in gone) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(_alive(pid) for pid in gone)
    finally:
        caller.kill()
        caller.wait()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
