"""pass@k, majority@k and bootstrap intervals against numpy oracles made from their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from prime_megatron.evaluate.figures import Mark, set_figures
from prime_megatron.evaluate.statistics import (
    differs,
    macro_interval,
    majority_at,
    mean_interval,
    paired_difference,
    pass_at,
    powers,
)
from prime_megatron.evaluate.votes import vote_of


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 3), (4, 4), (7, 2)])
def test_pass_at_is_the_share_of_subsets_with_a_right_sample(n: int, correct: int) -> None:
    right = np.arange(n) < correct
    for k in range(1, n + 1):
        share = np.mean([right[list(subset)].any() for subset in combinations(range(n), k)])
        assert pass_at(n, correct, k) == pytest.approx(share)


def majority_oracle(correct: list[bool], votes: list[str | None], k: int) -> float:
    """Over all subsets: of the answers with most votes, the share that is right."""
    shares = []
    for subset in combinations(range(len(votes)), k):
        names = [votes[i] for i in subset if votes[i] is not None]
        if not names:
            shares.append(0.0)
            continue
        found, counts = np.unique(np.array(names), return_counts=True)
        best = found[counts == counts.max()]
        shares.append(np.mean([correct[votes.index(name)] for name in best]))
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("votes", "right"),
    [
        (["7", "7", "8", None], {"7"}),
        (["7", "8", "8", "7"], {"8"}),
        ([None, None, "3", "3"], {"3"}),
        (["1", "2", "3", "4"], {"4"}),
        ([None] * 4, set()),
        (["a", "b", "b", "a", "a", "c"], {"b"}),
    ],
)
def test_majority_at(votes: list[str | None], right: set[str]) -> None:
    correct = [vote in right for vote in votes]
    for k in range(1, len(votes) + 1):
        assert majority_at(correct, votes, k) == pytest.approx(majority_oracle(correct, votes, k)), k


def test_majority_of_many_samples_looks_at_some_subsets_alike_every_time() -> None:
    rng = np.random.default_rng(3)
    votes: list[str | None] = [str(vote) for vote in rng.integers(0, 3, 24)]
    correct = [vote == "1" for vote in votes]
    first = majority_at(correct, votes, 8)
    assert first == majority_at(correct, votes, 8)
    shares = []
    for _ in range(4000):
        names, counts = np.unique(np.array(votes)[rng.choice(24, 8, replace=False)], return_counts=True)
        shares.append(np.mean(names[counts == counts.max()] == "1"))
    assert first == pytest.approx(np.mean(shares), abs=0.05)


def test_powers() -> None:
    assert [powers(n) for n in (1, 2, 3, 4, 10)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 10]]


def test_an_interval_is_that_of_resampled_questions() -> None:
    rng = np.random.default_rng(11)
    values = (rng.random(60) < 0.4).astype(float)
    interval = mean_interval(values.tolist())
    means = [values[rng.integers(0, 60, 60)].mean() for _ in range(20_000)]
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(np.quantile(means, 0.025), abs=0.02)
    assert interval.high == pytest.approx(np.quantile(means, 0.975), abs=0.02)
    # Nothing varies where all questions are alike.
    same = mean_interval([0.25] * 9)
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)


def test_every_set_counts_the_same_in_the_macro_average() -> None:
    large, small = [1.0] * 90 + [0.0] * 10, [0.0, 1.0, 0.0, 0.0]
    macro = macro_interval([large, small])
    assert macro.value == pytest.approx((0.9 + 0.25) / 2)
    rng = np.random.default_rng(5)
    means = [(rng.choice(large, 100).mean() + rng.choice(small, 4).mean()) / 2 for _ in range(20_000)]
    assert macro.low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert macro.high == pytest.approx(np.quantile(means, 0.975), abs=0.03)


def test_the_difference_is_paired() -> None:
    """Two models that differ on two of many questions: unpaired intervals overlap widely, the paired one is narrow."""
    rng = np.random.default_rng(2)
    first = (rng.random(400) < 0.5).astype(float)
    better = first.copy()
    better[np.flatnonzero(first == 0)[:20]] = 1.0
    difference = paired_difference([first.tolist()], [better.tolist()])
    assert difference.value == pytest.approx(20 / 400)
    deltas = better - first
    means = [deltas[rng.integers(0, 400, 400)].mean() for _ in range(20_000)]
    assert difference.low == pytest.approx(np.quantile(means, 0.025), abs=0.005)
    assert differs(difference)
    assert mean_interval(first.tolist()).high > mean_interval(better.tolist()).low


def test_models_whose_interval_holds_zero_are_not_different() -> None:
    first, second = [1.0, 0.0] * 20, [0.0, 1.0] * 18 + [1.0, 1.0, 1.0, 0.0]
    assert not differs(paired_difference([first], [second]))
    assert not differs(paired_difference([first], [first]))


@pytest.mark.parametrize(
    ("ability", "response", "vote"),
    [
        ("math", r"so \boxed{\dfrac12}", "1/2"),
        ("math", r"\boxed{0.50}", "1/2"),
        ("math", r"\boxed{ 1,234 }", "1234"),
        ("math", r"\boxed{20\text{ miles}}", "20"),
        ("math", r"\boxed{x^{2}}", "x^2"),
        ("math", r"\boxed{50\%}", "50%"),
        ("math", "none", None),
        ("exact", "<answer> a  b</answer>", "a b"),
        ("code", "```python\nprint(1)\n```", None),
    ],
)
def test_votes(ability: str, response: str, vote: str | None) -> None:
    assert vote_of(ability, response) == vote


def test_the_figures_of_a_set() -> None:
    marks = [
        [Mark("correct", 1.0, 4, False, "7"), Mark("wrong", 0.0, 6, True, "8"), Mark("no_answer", 0.0, 2, False, None)],
        [Mark("timeout", 0.0, 8, False, "1"), Mark("wrong", 0.5, 4, False, "2"), Mark("died", 0.0, 0, True, "2")],
    ]
    figures = set_figures(marks, votes=True)
    assert (figures.num_questions, figures.num_samples) == (2, 3)
    assert figures.accuracy.value == pytest.approx(1 / 6)
    assert figures.score == pytest.approx(1.5 / 6)
    assert figures.pass_at == pytest.approx({1: 1 / 6, 2: 1 / 3, 3: 1 / 2})
    # Of the first question: alone each of three; in pairs 7-8 tied, 7 alone, 8 alone; all three tied between 7 and 8.
    assert figures.majority_at == pytest.approx({1: 1 / 6, 2: (0.5 + 1 + 0) / 3 / 2, 3: 0.25})
    assert figures.response_tokens == 4.0
    assert figures.truncated == pytest.approx(2 / 6)
    assert figures.no_answer == pytest.approx(1 / 6)
    assert figures.grader_timeout == pytest.approx(1 / 6)
    assert figures.grader_failed == pytest.approx(1 / 6)
    assert set_figures(marks, votes=False).majority_at == {}
