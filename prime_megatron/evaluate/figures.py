"""From graded responses to the figures of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.evaluate.statistics import Interval, majority_at, mean_interval, pass_at, powers
from prime_megatron.verify.answer import CORRECT, FAILURES, NO_ANSWER, NO_CODE, TIMEOUT


@dataclass(frozen=True)
class Mark:
    """What counts of one response."""

    verdict: str
    outcome: float
    num_tokens: int | None
    """Of the response; None: an endpoint gave no tokens."""
    truncated: bool
    vote: str | None
    """Its answer in one spelling, for majority voting."""

    @property
    def right(self) -> bool:
        """Right in full: a program that passes some of its tests is not."""
        return self.verdict == CORRECT


@dataclass(frozen=True)
class SetFigures:
    """Of one set, over Q questions with n responses each."""

    num_questions: int
    num_samples: int
    """n."""
    accuracy: Interval
    """avg@n: responses that are right in full."""
    score: float
    """Mean outcome, those of programs that pass some tests included."""
    pass_at: dict[int, float]
    majority_at: dict[int, float]
    """Empty where responses have no votes (programs)."""
    response_tokens: float | None
    truncated: float
    no_answer: float
    grader_timeout: float
    grader_failed: float
    """Responses whose verifier failed otherwise."""


def question_accuracy(marks: Sequence[Mark]) -> float:
    """The share of a question's responses that are right."""
    return sum(mark.right for mark in marks) / len(marks)


def set_figures(by_question: Sequence[Sequence[Mark]], *, votes: bool) -> SetFigures:
    """The figures of a set; every question has equally many marks. ``votes``: whether responses can vote."""
    n = len(by_question[0])
    assert all(len(marks) == n for marks in by_question), "every question has n responses"
    marks = [mark for own in by_question for mark in own]
    counts = [sum(mark.right for mark in own) for own in by_question]
    lengths = [mark.num_tokens for mark in marks if mark.num_tokens is not None]
    rights = [[mark.right for mark in own] for own in by_question]
    answers = [[mark.vote for mark in own] for own in by_question]
    return SetFigures(
        num_questions=len(by_question),
        num_samples=n,
        accuracy=mean_interval([question_accuracy(own) for own in by_question]),
        score=_mean([mark.outcome for mark in marks]),
        pass_at={k: _mean([pass_at(n, count, k) for count in counts]) for k in powers(n)},
        majority_at={
            k: _mean([majority_at(right, answer, k) for right, answer in zip(rights, answers, strict=True)])
            for k in (powers(n) if votes else [])
        },
        response_tokens=_mean(lengths) if lengths else None,
        truncated=_mean([mark.truncated for mark in marks]),
        no_answer=_mean([mark.verdict in (NO_ANSWER, NO_CODE) for mark in marks]),
        grader_timeout=_mean([mark.verdict == TIMEOUT for mark in marks]),
        grader_failed=_mean([mark.verdict in FAILURES and mark.verdict != TIMEOUT for mark in marks]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
