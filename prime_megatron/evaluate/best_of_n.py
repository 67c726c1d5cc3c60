"""Choosing one of N samples of a prompt: by the PRM, by vote, by both, by chance; each from more samples than N.

With n samples of a prompt and N <= n, a figure is the mean over the subsets of N samples, which is unbiased for N fresh
samples (Chen et al. 2021, arXiv 2107.03374, for pass@k; the others the same way):

    random    the mean outcome, whatever N is
    any       pass@N: 1 - C(n - c, N) / C(n, N) with c right samples; what a perfect choice would reach
    best      the outcome of the sample with the highest PRM score: with the samples in the order of their scores, the
              i-th (from 1) is the best of C(i - 1, N - 1) of the C(n, N) subsets. Samples of equal score share the mean
              of their outcomes, as when one of them is drawn
    majority  the mean outcome of the answer that most of the N samples give; samples without an answer have no vote,
              answers with equally many share the mean. Over all subsets where there are few, else over drawn ones
    weighted  the same with the PRM's probability as the weight of a vote
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from prime_megatron.evaluate.statistics import Interval, mean_interval

Floats = NDArray[np.float64]
METHODS = ("random", "majority", "weighted", "best", "any")
MAX_SUBSETS = 2000
"""More subsets than this are drawn, this many."""


@dataclass(frozen=True)
class Candidates:
    """The samples of one prompt, all of length n."""

    outcome: Floats
    """In [0, 1]."""
    score: Floats
    """Of the PRM; only their order counts."""
    weight: Floats
    """Of a vote, above 0: the PRM's probability."""
    answer: NDArray[np.int64]
    """Number of the answer, equal for equal answers; -1 for a sample that gives none."""


def accuracies(prompts: Sequence[Candidates], n: int, seed: int) -> dict[str, Floats]:
    """Each method's expected outcome at N = n for every prompt: [prompts], by method."""
    rng = np.random.default_rng([seed, n])
    rows = [_of_prompt(prompt, n, rng) for prompt in prompts]
    return {method: np.array([row[method] for row in rows]) for method in METHODS}


def _of_prompt(prompt: Candidates, n: int, rng: np.random.Generator) -> dict[str, float]:
    subsets = subsets_of(len(prompt.outcome), n, rng)
    return {
        "random": float(prompt.outcome.mean()),
        "majority": vote(prompt, np.ones_like(prompt.weight), subsets),
        "weighted": vote(prompt, prompt.weight, subsets),
        "best": best_of(prompt.score, prompt.outcome, n),
        # With fractional outcomes: the expected best one, which is pass@N where they are 0 or 1.
        "any": best_of(prompt.outcome, prompt.outcome, n),
    }


def best_of(score: Floats, outcome: Floats, n: int) -> float:
    """Expected outcome of the highest score among n of the samples drawn without replacement."""
    total = len(score)
    assert 1 <= n <= total, (n, total)
    order = np.argsort(score, kind="stable")
    ranked, outcomes = score[order], outcome[order].astype(float)
    for value in np.unique(ranked):
        tied = ranked == value
        outcomes[tied] = outcomes[tied].mean()
    wins = np.array([comb(rank, n - 1) for rank in range(total)], dtype=float) / comb(total, n)
    return float(outcomes @ wins)


def subsets_of(total: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Subsets of n among ``total`` samples, [subsets, n]: all where there are at most MAX_SUBSETS, else drawn ones."""
    if comb(total, n) <= MAX_SUBSETS:
        return np.array(list(combinations(range(total), n)))
    return np.argsort(rng.random((MAX_SUBSETS, total)), axis=1)[:, :n]


def vote(prompt: Candidates, weight: Floats, subsets: NDArray[np.int64]) -> float:
    """Mean over the subsets of the outcome of the answer with the most weight."""
    num_answers = int(prompt.answer.max()) + 1
    outcome, answer = prompt.outcome[subsets], prompt.answer[subsets]
    if num_answers == 0:
        return float(outcome.mean())
    given = answer[:, :, None] == np.arange(num_answers)  # [subsets, n, answers]
    votes = (given * weight[subsets][:, :, None]).sum(1)
    count = given.sum(1)
    mean = (given * outcome[:, :, None]).sum(1) / np.maximum(count, 1)
    won = (votes >= votes.max(1, keepdims=True) - 1e-12) & (count > 0)
    chosen = (won * mean).sum(1) / np.maximum(won.sum(1), 1)
    # No one gave an answer: what is handed in is one of these samples.
    return float(np.where(count.any(1), chosen, outcome.mean(1)).mean())


@dataclass(frozen=True)
class Row:
    """The methods at one N, and how far the PRM's choice is above each other."""

    n: int
    methods: dict[str, Interval]
    above: dict[str, Interval]
    """best - method, paired by prompt."""


def table(prompts: Sequence[Candidates], ns: Sequence[int], seed: int) -> list[Row]:
    """All methods at every N; seed: of the subsets that are drawn."""
    rows = []
    for n in ns:
        by_method = accuracies(prompts, n, seed)
        best = by_method["best"]
        rows.append(
            Row(
                n,
                {method: mean_interval(values.tolist()) for method, values in by_method.items()},
                {name: mean_interval((best - by_method[name]).tolist()) for name in ("random", "majority", "weighted")},
            )
        )
    return rows
