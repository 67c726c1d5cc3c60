"""ProcessBench and the judge of steps against cases computed by hand and against numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prime_megatron.errors import InputError
from prime_megatron.evaluate.process_bench import (
    Solution,
    best_threshold,
    first_below,
    found,
    is_tuning,
    kinds_missing,
    read_solutions,
    step_scores,
)
from prime_megatron.evaluate.step_judge import first_wrong

ROW = {
    "id": "gsm8k-0",
    "generator": "Qwen2-7B-Instruct",
    "problem": "Sue lives in a fun neighborhood ...",
    "steps": ["To find out ...", "On Saturday ...", "So there are 30."],
    "final_answer_correct": False,
    "label": 1,
}


def write(path: Path, row: dict, kind: str) -> str:
    if kind == "json":
        path.write_text(json.dumps([row]))
    elif kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)
    return str(path)


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_published_rows_are_read(tmp_path: Path, kind: str) -> None:
    (row,) = read_solutions(write(tmp_path / f"gsm8k.{kind}", ROW, kind))
    assert (row.id, row.problem, row.steps, row.label) == (ROW["id"], ROW["problem"], tuple(ROW["steps"]), 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": 3}, "label must be the index of one of the 3 steps, or -1; got 3"),
        ({"label": -2}, "got -2"),
        ({"label": True}, "got True"),
        ({"label": None}, "label is missing"),
        ({"steps": []}, "steps must be a list of texts"),
        ({"steps": ["a", 1]}, "steps must be a list of texts"),
        ({"problem": " "}, "problem must be text"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    path = write(tmp_path / "bad.jsonl", ROW | change, "jsonl")
    with pytest.raises(InputError, match=r"bad.jsonl, row 1: ") as refusal:
        read_solutions(path)
    assert words in str(refusal.value)


def test_f1_by_hand() -> None:
    """Three of four wrong rows are named rightly and one of two right rows: 2 * 0.75 * 0.5 / 1.25 = 0.6."""
    one = found([0, 2, 1, 3, -1, -1], [0, 2, 1, 2, -1, 0])
    assert (one.num_wrong, one.num_right, one.accuracy_wrong, one.accuracy_right) == (4, 2, 0.75, 0.5)
    assert one.f1 == pytest.approx(0.6)
    assert found([0, -1], [1, 0]).f1 == 0.0
    assert found([0, -1], [-1, -1]).f1 == 0.0  # naming no step is right on right rows alone
    assert found([1, -1], [1, -1]).f1 == 1.0


def test_the_first_step_below_the_threshold() -> None:
    assert first_below([0.9, 0.2, 0.1], 0.5) == 1
    assert first_below([0.9, 0.6], 0.5) == -1
    assert first_below([0.5], 0.5) == -1  # not below


def test_the_tuned_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=rng.integers(1, 6)).round(2).tolist() for _ in range(60)]
    labels = [int(np.argmin(row)) if min(row) < -0.4 else -1 for row in scores]
    best = best_threshold(labels, scores)

    def f1_at(threshold: float) -> float:
        guesses = [next((i for i, score in enumerate(row) if score < threshold), -1) for row in scores]
        wrong = np.mean([a == b for a, b in zip(labels, guesses, strict=True) if a >= 0])
        right = np.mean([a == b for a, b in zip(labels, guesses, strict=True) if a < 0])
        return 0.0 if wrong + right == 0 else 2 * wrong * right / (wrong + right)

    assert f1_at(best) == pytest.approx(max(f1_at(x) for x in np.linspace(-4, 4, 1601)))
    assert f1_at(best) > 0.6


def test_one_problem_is_on_one_side() -> None:
    rows = [Solution(str(i), f"problem {i % 300}", ("a",), -1, "") for i in range(600)]
    tuning = [is_tuning(row, 0.2) for row in rows]
    assert tuning[:300] == tuning[300:] and 0.12 < np.mean(tuning) < 0.28
    assert kinds_missing(rows) == "none has a wrong step"
    assert kinds_missing([Solution("", "p", ("a",), 0, "")]) == "every one has a wrong step"


def test_step_scores_by_hand() -> None:
    rewards, ends = [1.0, 2.0, -3.0, 4.0, 0.5], (1, 1, 4)  # the second step has no token of its own
    assert step_scores(rewards, ends, "sum") == [3.0, 0, 1.5]
    assert step_scores(rewards, ends, "mean") == [1.5, 0.0, 0.5]
    assert step_scores(rewards, ends, "value") == [1.5, 1.5, pytest.approx(4.5 / 5)]


def test_the_judge_follows_its_formula() -> None:
    """S(j) = sum_{t<j} log p+_t + [j <= T] log p-_j, written out with probabilities."""
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        count = int(rng.integers(1, 6))
        plus, minus = rng.uniform(0.01, 0.5, count), rng.uniform(0.01, 0.5, count)
        p_plus, p_minus = plus / (plus + minus), minus / (plus + minus)
        likelihood = [np.prod(p_plus[:j]) * (p_minus[j] if j < count else 1.0) for j in range(count + 1)]
        wanted = int(np.argmax(likelihood))
        got = first_wrong(np.log(plus).tolist(), np.log(minus).tolist())
        assert got == (-1 if wanted == count else wanted)
        seen.add(got)
    assert {-1, 0, 1} <= seen


def test_the_judge_by_hand() -> None:
    log = lambda *values: [float(np.log(value)) for value in values]  # noqa: E731
    assert first_wrong(log(0.9, 0.9), log(0.1, 0.1)) == -1  # .81 against .1 and .09
    assert first_wrong(log(0.9, 0.2), log(0.1, 0.8)) == 1  # .72 against .1 and .18
    assert first_wrong(log(0.009, 0.0002), log(0.001, 0.0008)) == 1  # only their ratio counts
    assert first_wrong([-1000.0], [-1001.0]) == -1
