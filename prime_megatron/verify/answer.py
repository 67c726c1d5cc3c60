"""What goes into a verifier and what comes out."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

CORRECT = "correct"
WRONG = "wrong"
NO_ANSWER = "no_answer"
REFUSED = "refused"
TIMEOUT = "timeout"
ERROR = "error"


@dataclass(frozen=True)
class Answer:
    """One response to score.

    ability: which verifier scores it ("math", "exact", ...).
    response: the whole response text, not only its final answer.
    ground_truth: what the data calls right; its format belongs to the ability.
    """

    ability: str
    response: str
    ground_truth: str


@dataclass(frozen=True)
class Verdict:
    """One outcome.

    score: in [0, 1]; 1 is right. Every verdict but "correct" and a task's own partial ones scores 0.
    verdict: "correct", "wrong", "no_answer" (none found, or cut off), "refused" (outside the cheap limits),
        "timeout" (not decided in time) or "error" (the verifier failed: scores 0 and is counted).
    reason: one line for a person.
    """

    score: float
    verdict: str
    reason: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"a score lies in [0, 1], not {self.score!r} (verdict {self.verdict!r})")


class Verifier(Protocol):
    """Scores the answers of one ability."""

    def submit(self, answer: Answer) -> "Future[Verdict]":
        """Starts to score one answer; cheap ones come back already done. Safe from any thread."""
        ...

    def close(self) -> None:
        """Ends what the verifier started. May be called twice."""
        ...


def finished(verdict: Verdict) -> "Future[Verdict]":
    """A future that is already done."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future
