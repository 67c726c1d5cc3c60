"""Workers and zygotes that are killed, samples with limits, and what a flood of them leaves behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.verify import Answer
from prime_megatron.verify.code import check
from prime_megatron.verify.code.verifier import CodeVerifier

pytestmark = pytest.mark.skipif(
    check.refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs: no Landlock, or no seccomp"
)
LOOP = "```python\nwhile True: pass\n```"
SLEEPY = "```python\nimport time\nn = int(input())\ntime.sleep(0.3)\nprint(n * n)\n```"


def squares(count: int) -> str:
    return json.dumps({"inputs": [str(n) for n in range(count)], "outputs": [str(n * n) for n in range(count)]})


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_confined(pid: int) -> bool:
    """Whether the process is under a filter: a program, and no other child of a zygote."""
    try:
        return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def verifier() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(2, CodeConfig(timeout_s=20.0, sample_timeout_s=60.0))
    yield verifier
    verifier.close()


@pytest.mark.parametrize("victim", ["worker", "zygote", "program"])
def test_a_killed_process_costs_no_sample(victim: str, verifier: CodeVerifier) -> None:
    futures = [verifier.submit(Answer("code", SLEEPY, squares(5))) for _ in range(6)]

    def running() -> list[tuple[int, int, int]]:
        """(worker, zygote, program) of the samples in flight."""
        found = []
        for worker in verifier.pool.pids():
            for zygote in children(worker):
                found += [(worker, zygote, program) for program in children(zygote) if is_confined(program)]
        return found

    wait_until(lambda: len(running()) == 2)
    worker, zygote, program = running()[0]
    os.kill({"worker": worker, "zygote": zygote, "program": program}[victim], signal.SIGKILL)
    verdicts = [future.result(timeout=120) for future in futures]
    if victim == "program":
        # Nobody but the program itself, or the kernel, could have done that: it counts as its crash, in one test.
        assert sorted(verdict.score for verdict in verdicts) == [0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
        assert {verdict.verdict for verdict in verdicts} == {"correct", "crashed"}
    else:
        assert [(verdict.score, verdict.verdict) for verdict in verdicts] == [(1.0, "correct")] * 6
    usage = verifier.pool.take_usage()
    assert (usage.num_answers, usage.num_tests) == (6, 30)  # none lost, none scored twice
    wait_until(lambda: not Path(f"/proc/{program}").exists())


def test_nothing_is_left_when_the_verifier_is_closed_in_the_middle() -> None:
    verifier = CodeVerifier(2, CodeConfig())
    for _ in range(4):
        verifier.submit(Answer("code", LOOP, squares(3)))
    wait_until(lambda: sum(len(children(z)) for w in verifier.pool.pids() for z in children(w)) == 2)
    everyone = [*verifier.pool.pids()]
    everyone += [zygote for worker in everyone for zygote in children(worker)]
    everyone += [program for zygote in everyone for program in children(zygote)]
    folders = {str(path) for path in Path("/tmp").glob("prime-code-*")}
    verifier.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone))
    assert len(folders) >= 2
    left = {str(path) for path in Path("/tmp").glob("prime-code-*")} & folders
    # Folders of other verifiers on this machine may be among them; ours are gone.
    assert len(left) <= len(folders) - 2


def test_one_limit_for_a_sample() -> None:
    verifier = CodeVerifier(1, CodeConfig(timeout_s=1.0, sample_timeout_s=2.5))
    try:
        started = time.monotonic()
        verdict = verifier.submit(Answer("code", LOOP, squares(50))).result(timeout=60)
        assert time.monotonic() - started < 15.0
        assert (verdict.score, verdict.verdict) == (0.0, "time_limit")
        assert verifier.pool.take_usage().num_tests == 50
    finally:
        verifier.close()


def test_memory_stays_flat_over_many_samples() -> None:
    def resident_kb(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    big = json.dumps({"inputs": ["7"], "outputs": ["x" * 2_000_000]})
    verifier = CodeVerifier(1, CodeConfig())
    try:

        def score(count: int) -> None:
            for index in range(count):
                program = f"```python\ndata = 'x' * 2_000_000\nprint(data)  # {index}\n```"
                truth = big.replace('"7"', f'"{index}"')
                assert verifier.submit(Answer("code", program, truth)).result(timeout=60).score == 1.0

        score(15)
        (worker,) = verifier.pool.pids()
        (zygote,) = children(worker)
        before = resident_kb(worker), resident_kb(zygote)
        score(25)
        after = resident_kb(worker), resident_kb(zygote)
        assert verifier.pool.pids() == [worker]
        assert after[0] - before[0] < 20_000
        assert after[1] - before[1] < 1_000
    finally:
        verifier.close()


def test_attacks_are_held_here_and_seen_where_nothing_holds_them() -> None:
    check.prove_jail(CodeConfig())
    open_results = {name: held for name, held, _ in check.attack(CodeConfig(jail="none"))}
    assert open_results["(a harmless program runs)"]
    assert open_results["hold memory"]
    assert not any(
        open_results[name] for name in ("read a file outside", "write a file outside", "fork", "open a socket")
    )


def test_a_jail_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ATTACKS", (check.Attack("nothing at all", "pass"),))
    with pytest.raises(InputError, match=r"not held on this machine: nothing at all"):
        check.prove_jail(CodeConfig())


def test_without_a_jail_a_program_and_its_children_end_all_the_same() -> None:
    verifier = CodeVerifier(1, CodeConfig(jail="none", timeout_s=2.0))
    program = (
        "```python\nimport os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(300)\n    os._exit(0)\ntime.sleep(0.2)\nprint(int(input()) ** 2)\n```"
    )
    try:
        verdict = verifier.submit(Answer("code", program, squares(1))).result(timeout=60)
        (worker,) = verifier.pool.pids()
        (zygote,) = children(worker)
        assert not children(zygote)
        assert verdict.score in (0.0, 1.0)  # its grandchild may hold standard output open
    finally:
        verifier.close()
