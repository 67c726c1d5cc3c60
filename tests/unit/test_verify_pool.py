"""Workers that hang, die, are killed, or lose their parent. Bombs run only in a worker that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.errors import RunError
from prime_megatron.verify import process as process_module
from prime_megatron.verify.pool import WorkerPool
from prime_megatron.verify.worker import answer_one

BOMB = "9^{9^{9^9}}"  # past the cheap checks, as these tests go straight to the pool
ROOT = Path(__file__).parents[2]


def ask(answer: str, ground_truth: str) -> dict[str, str]:
    return {"answer": answer, "ground_truth": ground_truth}


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.fixture
def pool():
    pool = WorkerPool(num_workers=2, timeout_s=6.0, memory_bytes=2**30)
    yield pool
    pool.close()
    assert pool.pids() == []


def test_no_process_before_the_first_job(pool: WorkerPool) -> None:
    assert pool.pids() == []
    assert pool.submit(ask("b+a", "a+b")).result().verdict == "correct"
    assert len(pool.pids()) == 1  # one job, one process


def test_a_bomb_times_out_and_costs_no_other_answer(pool: WorkerPool) -> None:
    answers = [(BOMB, "42"), ("b+a", "a+b"), ("b+a", "a-b"), (BOMB, "42"), ("(x+1)^2", "x^2+2x+1"), ("x", "y")]
    verdicts = [future.result() for future in [pool.submit(ask(*answer)) for answer in answers]]
    assert [v.verdict for v in verdicts] == ["timeout", "correct", "wrong", "timeout", "correct", "wrong"]
    assert [v.score for v in verdicts] == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert len(pool.pids()) <= 2


def test_an_idle_process_that_was_killed_is_replaced() -> None:
    pool = WorkerPool(num_workers=1, timeout_s=30.0, memory_bytes=2**30)
    assert pool.submit(ask("b+a", "a+b")).result().verdict == "correct"
    (first,) = pool.pids()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first))
    assert pool.submit(ask("(x+1)^2", "x^2+2x+1")).result().verdict == "correct"
    (second,) = pool.pids()
    assert second != first
    pool.close()
    assert not alive(second)


def test_a_process_killed_mid_answer_is_tried_again_then_an_error() -> None:
    pool = WorkerPool(num_workers=1, timeout_s=600.0, memory_bytes=2**30)
    assert pool.submit(ask("b+a", "a+b")).result().verdict == "correct"
    (first,) = pool.pids()
    idle_ticks = cpu_ticks(first)
    bomb, after = pool.submit(ask(BOMB, "42")), pool.submit(ask("b+a", "a+b"))
    wait_until(lambda: cpu_ticks(first) > idle_ticks + 5)  # it is at work on the bomb
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pool.pids() not in ([], [first]))
    (second,) = pool.pids()
    wait_until(lambda: cpu_ticks(second) > 2 * idle_ticks + 50)  # loaded, and at work on the bomb again
    assert not bomb.done()
    os.kill(second, signal.SIGKILL)
    verdict = bomb.result(timeout=120)
    assert (verdict.score, verdict.verdict) == (0.0, "died")
    assert "twice" in verdict.reason
    assert after.result(timeout=120).verdict == "correct"
    pool.close()


def test_close_ends_a_busy_process_and_tells_who_waits() -> None:
    pool = WorkerPool(num_workers=1, timeout_s=600.0, memory_bytes=2**30)
    busy, waiting = pool.submit(ask(BOMB, "42")), pool.submit(ask("b+a", "a+b"))
    wait_until(lambda: len(pool.pids()) == 1 and busy.running())
    (pid,) = pool.pids()
    pool.close()
    with pytest.raises(RunError, match="closed"):
        busy.result(timeout=60)
    assert waiting.cancelled()
    assert not alive(pid)
    with pytest.raises(RunError, match="closed"):
        pool.submit(ask("1", "1"))
    pool.close()


def test_a_verifier_that_cannot_start_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "worker.py"
    monkeypatch.setattr(process_module, "WORKER_FILE", broken)
    pool = WorkerPool(num_workers=1, timeout_s=5.0, memory_bytes=2**30, start_timeout_s=30.0)
    broken.write_text("import sys; sys.exit(3)")
    with pytest.raises(RunError, match="cannot start: exit status 3"):
        pool.submit(ask("1", "2")).result(timeout=60)
    broken.write_text("""print('{"ready": false, "reason": "ImportError: no math_verify"}')""")
    with pytest.raises(RunError, match="cannot start: ImportError: no math_verify"):
        pool.submit(ask("1", "2")).result(timeout=60)
    broken.write_text("""print('{"ready": true}', flush=True); input(); print('nonsense', flush=True)""")
    verdict = pool.submit(ask("1", "2")).result(timeout=60)
    assert (verdict.verdict, verdict.score) == ("died", 0.0)
    pool.close()


@pytest.mark.parametrize("failure", [MemoryError(), RecursionError()])
def test_a_process_out_of_memory_asks_to_be_replaced(failure: Exception) -> None:
    class Failing:
        def grade(self, request: Mapping[str, Any]) -> tuple[float, str, str]:
            raise failure

    reply = answer_one(Failing(), json.dumps(ask("1", "2")).encode())
    assert (reply["verdict"], reply["last"]) == ("error", True)
    assert type(failure).__name__ in str(reply["reason"])


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_death_of_the_parent_ends_a_busy_process() -> None:
    program = f"""
import time
from prime_megatron.verify.pool import WorkerPool
pool = WorkerPool(num_workers=1, timeout_s=600.0, memory_bytes=2**30)
pool.submit({ask("b+a", "a+b")!r}).result()
bomb = pool.submit({ask(BOMB, "42")!r})
print(pool.pids()[0], flush=True)
time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert alive(pid)
        finally:
            parent.kill()
    try:
        wait_until(lambda: not alive(pid))
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
