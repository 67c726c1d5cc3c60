"""What goes into a verifier and what comes out."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

CORRECT = "correct"
WRONG = "wrong"
NO_ANSWER = "no_answer"
REFUSED = "refused"
PARTIAL = "partial"
TIMEOUT = "timeout"
ERROR = "error"
DIED = "died"
WRONG_TYPE = "wrong_type"
NOT_FINITE = "not_finite"
OUT_OF_RANGE = "out_of_range"

NO_CODE = "no_code"
EXCEPTION = "exception"
CRASHED = "crashed"
TIME_LIMIT = "time_limit"
MEMORY_LIMIT = "memory_limit"
OUTPUT_LIMIT = "output_limit"

OF_PROGRAMS = (NO_CODE, EXCEPTION, CRASHED, TIME_LIMIT, MEMORY_LIMIT, OUTPUT_LIMIT)
"""Verdicts on programs beside "correct" and "wrong"."""
FAILURES = (TIMEOUT, ERROR, DIED, WRONG_TYPE, NOT_FINITE, OUT_OF_RANGE)
"""Verdicts on the verifier, not on the answer, which scores 0; counted by kind."""
VERDICTS = (CORRECT, WRONG, PARTIAL, NO_ANSWER, REFUSED, *FAILURES, *OF_PROGRAMS)
"""All there are."""


@dataclass(frozen=True)
class Answer:
    """One response to score.

    ability: which verifier scores it ("math", "exact", ...).
    response: the whole response text, not only its final answer.
    ground_truth: what the data calls right; its format belongs to the ability.
    prompt, data_source, extra_info: of the row, for custom rewards; extra_info holds JSON values.
    other_truths: further ground truths; the best verdict of all counts.
    """

    ability: str
    response: str
    ground_truth: str
    prompt: str = ""
    data_source: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    other_truths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """One outcome.

    score: in [0, 1]; 1 is right. Every verdict but "correct" and "partial", and a program's that passes some tests,
        scores 0.
    verdict: "correct", "wrong", "partial" (a score between), "no_answer" (none found, or cut off), "refused" (outside
        the cheap limits), of a program "no_code" or what went wrong in its first test that does not pass ("exception",
        "crashed", "time_limit", "memory_limit", "output_limit"), or a failure of the verifier: "timeout" (not decided
        in time), "error" (it raised), "died" (its process ended), and of a custom reward "wrong_type", "not_finite" and
        "out_of_range" (what it returned).
    reason: one line for a person.
    """

    score: float
    verdict: str
    reason: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"a score lies in [0, 1], not {self.score!r} (verdict {self.verdict!r})")
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r} is none of {', '.join(VERDICTS)}")


class Verifier(Protocol):
    """Scores the answers of one ability."""

    def submit(self, answer: Answer) -> "Future[Verdict]":
        """Starts to score one answer; cheap ones come back already done. Safe from any thread."""
        ...

    def truth_problem(self, ground_truth: str) -> str | None:
        """Why no answer can be scored against this ground truth, as far as that is told at once; None: one can."""
        ...

    def close(self) -> None:
        """Ends what the verifier started. May be called twice."""
        ...


def finished(verdict: Verdict) -> "Future[Verdict]":
    """A future that is already done."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def best_of(futures: "Sequence[Future[Verdict]]") -> "Future[Verdict]":
    """The verdict with the highest score, the first of equals, as soon as all are there; the first error where one has
    failed."""
    best: Future[Verdict] = Future()
    left = len(futures)
    lock = threading.Lock()

    def count(_: "Future[Verdict]") -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            best.set_result(max((future.result() for future in futures), key=lambda verdict: verdict.score))
        except BaseException as error:  # a failed verifier's own; whoever waits for the best one gets it
            best.set_exception(error)

    for future in futures:
        future.add_done_callback(count)
    return best
