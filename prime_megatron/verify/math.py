r"""Math answers: the last \boxed{}, then strings and exact numbers, then math-verify in a process one can kill."""

import re
from concurrent.futures import Future

from prime_megatron.verify.answer import CORRECT, ERROR, NO_ANSWER, REFUSED, WRONG, Answer, Verdict, finished
from prime_megatron.verify.boxed import last_boxed
from prime_megatron.verify.compare import base_left_out, is_nan, quick_equal
from prime_megatron.verify.limits import MAX_CHARS, refuse
from prime_megatron.verify.match import match
from prime_megatron.verify.pairs import PairMemory, when_done
from prime_megatron.verify.pool import WorkerPool
from prime_megatron.verify.spelling import respell
from prime_megatron.verify.truth import math_problem, needs_computing


def final_ground_truth(ground_truth: str) -> str:
    r"""The answer in a ground truth: after the last "####" (GSM8K), inside the last \boxed{}, or all of it."""
    if "####" in ground_truth:
        return ground_truth.rpartition("####")[2].strip()
    boxed = last_boxed(ground_truth).text if "\\boxed" in ground_truth else None
    return ground_truth.strip() if boxed is None else boxed


def decide(response: str, ground_truth: str, prompt: str = "") -> Verdict | tuple[str, str]:
    r"""The verdict where it needs no computer algebra, else the (answer, ground truth) LaTeX that does.

    Response: any length; only its last \boxed{} counts. Ground truth: one answer, in any form of final_ground_truth.
    """
    found = last_boxed(response)
    if found.text is None:
        return Verdict(0.0, NO_ANSWER, found.problem)
    gold = final_ground_truth(ground_truth)
    if not gold:
        return Verdict(0.0, ERROR, "the ground truth is empty")
    if found.text == gold:
        return _right(gold, "same text")
    if "_" in found.text and _base_is_asked_for(found.text, gold, prompt + response[: found.start]):
        return Verdict(1.0, CORRECT, "same digits, in the base of the question")
    short = len(found.text) <= MAX_CHARS and len(gold) <= MAX_CHARS
    if short:
        equal = quick_equal(gold, found.text)
        if equal is not None:
            return _right(gold, "same value") if equal else Verdict(0.0, WRONG, "another value")
    refusal = refuse(found.text, gold)
    if refusal is not None:
        return Verdict(0.0, REFUSED, refusal)
    spelled = respell(found.text), respell(gold)
    equal = match(spelled[1], spelled[0], quick_equal) if short else None
    if equal is not None:
        return Verdict(1.0, CORRECT, "same value") if equal else Verdict(0.0, WRONG, "another value")
    return spelled


def _right(gold: str, reason: str) -> Verdict:
    return Verdict(0.0, WRONG, "nan is no answer") if is_nan(gold) else Verdict(1.0, CORRECT, reason)


def _base_is_asked_for(answer: str, gold: str, before: str) -> bool:
    """Whether the answer has the ground truth's digits and names the base that the question or the working is in."""
    names = base_left_out(gold, answer) if len(answer) <= MAX_CHARS and len(gold) <= MAX_CHARS else ()
    if not names:
        return False
    named = rf"_\s*\{{?{names[0]}(?![0-9])|base[\s~$-]*(?:{'|'.join(names)})(?![0-9])"
    return re.search(named, before) is not None


def _why_unequal(verdict: Verdict) -> str | None:
    return None if verdict.verdict == CORRECT else f"it does not equal itself ({verdict.reason})"


class MathVerifier:
    """Scores ability "math": 1 for an answer equal to the ground truth, 0 for everything else.

    num_workers, timeout_s, memory_bytes: as in WorkerPool; no process starts before an answer needs one.
    """

    def __init__(self, num_workers: int, timeout_s: float, memory_bytes: int) -> None:
        self.pool = WorkerPool(num_workers, timeout_s, memory_bytes)
        self._pairs = PairMemory()

    def submit(self, answer: Answer) -> "Future[Verdict]":
        decision = decide(answer.response, answer.ground_truth, answer.prompt)
        return finished(decision) if isinstance(decision, Verdict) else self._ask(*decision)

    def _ask(self, answer: str, ground_truth: str) -> "Future[Verdict]":
        pair = (answer, ground_truth)
        return self._pairs.get(pair, lambda: self.pool.submit({"answer": answer, "ground_truth": ground_truth}))

    def truth_problem(self, ground_truth: str) -> str | None:
        """Blank, nan, or words in place of an answer. Starts nothing."""
        return math_problem(final_ground_truth(ground_truth))

    def prove_truth(self, ground_truth: str) -> "Future[str | None] | None":
        """Starts to compute a ground truth against itself: why it does not equal itself, or None; the future may raise
        RunError. None instead of a future: a number, a choice or words, which need no computing."""
        truth = final_ground_truth(ground_truth)
        if not needs_computing(truth):
            return None
        spelled = respell(truth)
        return when_done(self.pool.submit({"answer": spelled, "ground_truth": spelled, "prove": True}), _why_unequal)

    def close(self) -> None:
        self.pool.close()
