"""Pairs that siblings share, and what is said of processes that die."""

import logging
from concurrent.futures import Future
from pathlib import Path

import pytest

from prime_megatron.verify import process as process_module
from prime_megatron.verify.answer import Answer, Verdict
from prime_megatron.verify.math import MathVerifier
from prime_megatron.verify.pairs import PairMemory, when_done
from prime_megatron.verify.pool import WorkerPool


class Asked:
    """Futures that the test decides, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.futures: list[Future[Verdict]] = []

    def __call__(self) -> "Future[Verdict]":
        self.futures.append(Future())
        return self.futures[-1]


@pytest.mark.parametrize("kind", ["timeout", "died", "wrong", "correct"])
def test_siblings_share_one_verdict(kind: str) -> None:
    memory, ask = PairMemory(), Asked()
    verdict = Verdict(float(kind == "correct"), kind, "as it came")
    first, second = memory.get(("a", "g"), ask), memory.get(("a", "g"), ask)
    assert len(ask.futures) == 1  # the second waits for the first
    ask.futures[0].set_result(verdict)
    assert first.result() == second.result() == memory.get(("a", "g"), ask).result() == verdict
    assert len(ask.futures) == 1
    memory.get(("b", "g"), ask)
    memory.get(("a", "h"), ask)
    assert len(ask.futures) == 3


def test_what_the_grader_could_not_do_is_tried_again() -> None:
    memory, ask = PairMemory(), Asked()
    memory.get(("a", "g"), ask)
    ask.futures[0].set_result(Verdict(0.0, "error", "MemoryError in the grader"))
    memory.get(("a", "g"), ask)
    ask.futures[1].set_exception(RuntimeError("closed"))
    memory.get(("a", "g"), ask)
    ask.futures[2].cancel()
    memory.get(("a", "g"), ask)
    assert len(ask.futures) == 4


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_megatron.verify.pairs._MAX_PAIRS", 2)
    memory, ask = PairMemory(), Asked()
    for answer in ("a", "b", "c"):
        memory.get((answer, "g"), ask)
        ask.futures[-1].set_result(Verdict(0.0, "wrong", "no"))
    memory.get(("c", "g"), ask)
    assert len(ask.futures) == 3
    memory.get(("a", "g"), ask)  # the oldest has gone
    assert len(ask.futures) == 4


def test_a_pair_that_timed_out_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_megatron.verify.pairs._FAILED_S", 0.0)
    memory, ask = PairMemory(), Asked()
    memory.get(("a", "g"), ask)
    ask.futures[0].set_result(Verdict(0.0, "timeout", "not decided within 5 s"))
    memory.get(("a", "g"), ask)
    assert len(ask.futures) == 2


def test_the_math_verifier_asks_once_for_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "WORKER_FILE", _worker(tmp_path, "import time; input(); time.sleep(60)"))
    verifier = MathVerifier(num_workers=1, timeout_s=0.3, memory_bytes=2**30)
    answers = [Answer("math", f"so \\boxed{{{spelling}}}", "a+b") for spelling in ("b+ a", "b+a", "b+a")]
    verdicts = [future.result(60) for future in [verifier.submit(answer) for answer in answers]]
    assert [verdict.verdict for verdict in verdicts] == ["timeout"] * 3
    asked = len(set(map(id, (verifier.submit(answer).result(60) for answer in answers[1:]))))
    assert asked == 1
    verifier.close()


def test_only_the_first_death_of_a_process_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_module, "WORKER_FILE", _worker(tmp_path, "input()"))
    pool = WorkerPool(num_workers=1, timeout_s=30.0, memory_bytes=2**30)
    with caplog.at_level(logging.WARNING):
        futures = [pool.submit({"answer": f"{number}", "ground_truth": "x"}) for number in range(3)]
        assert [future.result(60).verdict for future in futures] == ["died"] * 3
    assert sum("ended while it graded" in record.message for record in caplog.records) == 1
    pool.close()


def test_a_future_made_from_a_verdict_fails_as_it_does() -> None:
    good: Future[Verdict] = Future()
    made = when_done(good, lambda verdict: verdict.reason)
    good.set_result(Verdict(0.0, "wrong", "no"))
    assert made.result(5) == "no"
    bad: Future[Verdict] = Future()
    failed = when_done(bad, lambda verdict: verdict.reason)
    bad.set_exception(RuntimeError("closed"))
    with pytest.raises(RuntimeError, match="closed"):
        failed.result(5)


def _worker(folder: Path, body: str) -> Path:
    file = folder / "worker.py"
    file.write_text(f"""print('{{"ready": true}}', flush=True); {body}""")
    return file
