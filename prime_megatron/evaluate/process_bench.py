"""ProcessBench (arXiv 2412.06559): which step of a solution is the first wrong one, and how well that is found.

The published rows have id, generator, problem, steps, final_answer_correct and label: the index of the first wrong
step, or -1 where all are right. F1 is its authors': the harmonic mean of the accuracy on rows with a wrong step (the
very step must be named) and on rows without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.generate.tables import read_table

NO_ERROR = -1
"""The label of a solution without a wrong step."""


@dataclass(frozen=True)
class Solution:
    """One row."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int
    """Index of the first wrong step, or NO_ERROR."""
    origin: str


def read_solutions(path: str) -> list[Solution]:
    """The rows of a published file, JSON, JSON lines or parquet. Raises InputError by file and row."""
    return [_parse(row, origin) for origin, row in read_table(Path(path))]


def _parse(row: Mapping[str, Any], origin: str) -> Solution:
    for key in ("problem", "steps", "label"):
        if row.get(key, None) is None:
            raise InputError(f"{origin}: {key} is missing; a row of ProcessBench has problem, steps and label")
    problem, steps, label = row["problem"], row["steps"], row["label"]
    if not isinstance(problem, str) or not problem.strip():
        raise InputError(f"{origin}: problem must be text that is not empty")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise InputError(f"{origin}: steps must be a list of texts, at least one")
    if isinstance(label, bool) or not isinstance(label, int) or not NO_ERROR <= label < len(steps):
        raise InputError(f"{origin}: label must be the index of one of the {len(steps)} steps, or -1; got {label!r}")
    return Solution(str(row.get("id", origin)), problem, tuple(steps), label, origin)


def is_tuning(solution: Solution, share: float) -> bool:
    """Whether a row is one that the threshold is tuned on: by its problem, so that one problem is on one side."""
    digest = hashlib.sha256(solution.problem.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def first_below(scores: Sequence[float], threshold: float) -> int:
    """The first step whose score is below the threshold, NO_ERROR where none is."""
    return next((index for index, score in enumerate(scores) if score < threshold), NO_ERROR)


def kinds_missing(solutions: Sequence[Solution]) -> str | None:
    """What F1 would lack among these rows; None: nothing."""
    labels = {solution.label == NO_ERROR for solution in solutions}
    if False not in labels:
        return "none has a wrong step"
    return None if True in labels else "every one has a wrong step"


@dataclass(frozen=True)
class Found:
    """How well first wrong steps were found."""

    num_wrong: int
    """Rows with a wrong step."""
    num_right: int
    """Rows without one."""
    accuracy_wrong: float
    accuracy_right: float

    @property
    def f1(self) -> float:
        """Harmonic mean of the two accuracies; 0 where both are."""
        total = self.accuracy_wrong + self.accuracy_right
        return 2 * self.accuracy_wrong * self.accuracy_right / total if total else 0.0


def found(labels: Sequence[int], predicted: Sequence[int]) -> Found:
    """The accuracies. Labels of both kinds must be there."""
    hits: dict[bool, list[bool]] = {False: [], True: []}
    for label, guess in zip(labels, predicted, strict=True):
        hits[label == NO_ERROR].append(label == guess)
    wrong, right = hits[False], hits[True]
    assert wrong and right, (len(wrong), len(right))
    return Found(len(wrong), len(right), sum(wrong) / len(wrong), sum(right) / len(right))


def best_threshold(labels: Sequence[int], scores: Sequence[Sequence[float]]) -> float:
    """The threshold of highest F1; of several, the one in the middle of the list of those.

    Only the midpoints between neighbouring scores can differ, and one below and one above them all.
    """
    values = sorted({score for row in scores for score in row})
    middles = [(low + high) / 2 for low, high in pairwise(values)]
    candidates = [values[0] - 1.0, *middles, values[-1] + 1.0]
    f1s = [found(labels, [first_below(row, candidate) for row in scores]).f1 for candidate in candidates]
    best = [candidate for candidate, f1 in zip(candidates, f1s, strict=True) if f1 == max(f1s)]
    return best[len(best) // 2]


def _value(rewards: Sequence[float], start: int, end: int) -> float:
    return sum(rewards[: end + 1]) / (end + 1)


STEP_SCORES: Mapping[str, Callable[[Sequence[float], int, int], float]] = {
    "sum": lambda rewards, start, end: sum(rewards[start : end + 1]),
    "mean": lambda rewards, start, end: sum(rewards[start : end + 1]) / max(end + 1 - start, 1),
    "value": _value,
}
"""A step's score from the response's process rewards; the step is tokens start to end. value: the mean of all rewards
up to its end (the prefix value of arXiv 2604.13197)."""


def step_scores(rewards: Sequence[float], step_ends: Sequence[int], kind: str) -> list[float]:
    """The score of every step. kind: a key of STEP_SCORES; step_ends: last token of each step, growing."""
    score = STEP_SCORES[kind]
    return [score(rewards, before + 1, end) for before, end in pairwise((-1, *step_ends))]
