"""What samples say of a model: pass@k, majority@k, and how far the figures could be another by the choice of questions.

Legend: Q questions, R bootstrap resamples. Intervals are percentile intervals of a bootstrap over questions (Efron and
Tibshirani 1993, chapter 13), two-sided at LEVEL; the samples of a question stay together. Seeded: the same figures in
every process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_SUBSETS = 512
"""Subsets of k samples that majority@k looks at; all of them where there are no more."""
_CHUNK = 2**22


@dataclass(frozen=True)
class Interval:
    """A figure and its interval."""

    value: float
    low: float
    high: float


def pass_at(n: int, correct: int, k: int) -> float:
    """Unbiased pass@k from n samples (Chen et al. 2021, arXiv 2107.03374, equation 1)."""
    return 1.0 - comb(n - correct, k) / comb(n, k)


def majority_at(correct: Sequence[bool], votes: Sequence[str | None], k: int) -> float:
    """The chance that the answer most of k samples give is right, over subsets of k of the samples.

    Samples without an answer (None) do not vote. Where several answers have most votes each is taken equally often.
    An answer is as right as the first sample that gives it.

    Args:
        correct: whether each sample is right.
        votes: its answer, equal texts for equal answers.
        k: at most the number of samples.
    """
    right = {vote: mark for vote, mark in reversed(list(zip(votes, correct, strict=True))) if vote is not None}
    shares = [_majority([votes[index] for index in subset], right) for subset in _subsets(len(votes), k)]
    return sum(shares) / len(shares)


def _majority(votes: Sequence[str | None], right: Mapping[str, bool]) -> float:
    counts: dict[str, int] = {}
    for vote in votes:
        if vote is not None:
            counts[vote] = counts[vote] + 1 if vote in counts else 1
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = [right[vote] for vote, count in counts.items() if count == most]
    return sum(winners) / len(winners)


def _subsets(n: int, k: int) -> Iterator[Sequence[int]]:
    if comb(n, k) <= _SUBSETS:
        yield from combinations(range(n), k)
        return
    generator = np.random.default_rng(0)
    for _ in range(_SUBSETS):
        yield generator.choice(n, k, replace=False).tolist()


def powers(count: int) -> list[int]:
    """1, 2, 4, ... below count, and count itself."""
    return [*(2**e for e in range(count.bit_length()) if 2**e < count), count]


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over questions."""
    return macro_interval([values])


def macro_interval(by_set: Sequence[Sequence[float]]) -> Interval:
    """The mean over sets of their means over questions; the questions of each set are drawn for themselves."""
    value = sum(sum(values) / len(values) for values in by_set) / len(by_set)
    means_R = np.mean([_resampled(np.asarray(values, dtype=np.float64)) for values in by_set], axis=0)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """Second model less first on the same questions, by set; macro average over the sets."""
    return macro_interval(
        [[b - a for a, b in zip(ours, theirs, strict=True)] for ours, theirs in zip(first, second, strict=True)]
    )


def differs(difference: Interval) -> bool:
    """Whether two models may be called different: zero lies outside the interval."""
    return difference.low > 0 or difference.high < 0


def _resampled(values_Q: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES draws of Q questions with replacement, float64 [R]."""
    generator = np.random.default_rng(0)
    count = len(values_Q)
    at_once = max(1, _CHUNK // count)
    means = [
        values_Q[generator.integers(0, count, (min(at_once, RESAMPLES - done), count))].mean(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(means)
