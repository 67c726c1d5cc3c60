"""Choices among N samples against their definition: every subset, one after the other."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from prime_megatron.cli.main import main
from prime_megatron.errors import InputError
from prime_megatron.evaluate import best_of_n
from prime_megatron.evaluate.best_of_n import Candidates, accuracies, table
from prime_megatron.evaluate.scored import candidates, read_scored
from prime_megatron.evaluate.statistics import differs, majority_at

OUTCOME = [1.0, 0.0, 1.0, 0.0, 0.25, 0.5]
SCORE = [0.3, 0.3, -1.0, 2.0, 0.3, 0.1]
WEIGHT = [0.6, 0.2, 0.3, 0.9, 0.4, 0.5]
ANSWER = [0, 1, 0, 2, -1, 1]


def prompt(**changed: list[float]) -> Candidates:
    values = {"outcome": OUTCOME, "score": SCORE, "weight": WEIGHT, "answer": ANSWER} | changed
    return Candidates(**{name: np.array(value) for name, value in values.items()})


def chosen_by_score(subset: tuple[int, ...], score: list[float]) -> float:
    """The mean outcome of those that share the highest score."""
    top = max(score[i] for i in subset)
    best = [OUTCOME[i] for i in subset if score[i] == top]
    return sum(best) / len(best)


def chosen_by_vote(subset: tuple[int, ...], weight: list[float]) -> float:
    votes: dict[int, float] = {}
    for i in subset:
        if ANSWER[i] >= 0:
            votes[ANSWER[i]] = votes.get(ANSWER[i], 0.0) + weight[i]
    if not votes:
        return sum(OUTCOME[i] for i in subset) / len(subset)
    winners = [answer for answer, vote in votes.items() if abs(vote - max(votes.values())) < 1e-12]
    means = [np.mean([OUTCOME[i] for i in subset if ANSWER[i] == answer]) for answer in winners]
    return float(np.mean(means))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_every_choice_is_the_mean_over_all_subsets(n: int) -> None:
    subsets = list(combinations(range(6), n))
    wanted = {
        "random": np.mean([np.mean([OUTCOME[i] for i in subset]) for subset in subsets]),
        "best": np.mean([chosen_by_score(subset, SCORE) for subset in subsets]),
        "any": np.mean([max(OUTCOME[i] for i in subset) for subset in subsets]),
        "majority": np.mean([chosen_by_vote(subset, [1.0] * 6) for subset in subsets]),
        "weighted": np.mean([chosen_by_vote(subset, WEIGHT) for subset in subsets]),
    }
    found = accuracies([prompt()], n, seed=0)
    assert {name: values[0] for name, values in found.items()} == pytest.approx(wanted, abs=1e-12)


def test_the_vote_is_that_of_the_suites() -> None:
    """With answers that are right or wrong as a whole, and one given by every sample."""
    right, votes = [True, False, True, False, False], ["a", "b", "a", "c", "b"]
    same = prompt(outcome=[float(mark) for mark in right], score=[0.0] * 5, weight=[1.0] * 5, answer=[0, 1, 0, 2, 1])
    for n in (1, 2, 3, 5):
        assert accuracies([same], n, 0)["majority"][0] == pytest.approx(majority_at(right, votes, n))


def test_drawn_subsets_come_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = accuracies([prompt()], 3, seed=0)["weighted"][0]
    monkeypatch.setattr(best_of_n, "MAX_SUBSETS", 15)  # of 20
    assert accuracies([prompt()], 3, seed=0)["weighted"][0] == accuracies([prompt()], 3, seed=0)["weighted"][0]
    drawn = np.mean([accuracies([prompt()], 3, seed=seed)["weighted"][0] for seed in range(200)])
    assert drawn == pytest.approx(exact, abs=0.03)


def test_a_prm_that_knows_is_above_chance_beyond_the_interval_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(0)
    knows, guesses = [], []
    for _ in range(60):
        outcome = (rng.random(8) < 0.4).astype(float)
        answer = np.where(outcome > 0, 0, rng.integers(1, 4, 8))
        knows.append(Candidates(outcome, outcome + 0.1 * rng.random(8), np.full(8, 0.5), answer))
        guesses.append(Candidates(outcome, rng.random(8), np.full(8, 0.5), answer))
    good, poor = table(knows, [8], 0)[0], table(guesses, [8], 0)[0]
    assert good.methods["best"].value == good.methods["any"].value
    assert good.above["random"].low > 0 and differs(good.above["random"]) and differs(good.above["majority"])
    assert not differs(poor.above["random"])
    assert poor.above["random"].low < 0 < poor.above["random"].high


def rows() -> list[dict]:
    return [
        {
            "id": f"q{i // 3}",
            "sample": i % 3,
            "prompt": "p",
            "response": f"\\boxed{{{[7, '7.0', 5][i % 3]}}}" if i != 5 else "none",
            "outcome": [1.0, 1.0, 0.0][i % 3],
            "process_rewards": [0.5, -0.25 * i],
            "step_rewards": [0.5 - 0.25 * i],
        }
        for i in range(6)
    ]


def write(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_scored_rows_become_candidates(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.jsonl", rows())
    (first, second), count = candidates(read_scored(path, "total", "math"), path)
    assert count == 3
    assert first.answer.tolist() == [0, 0, 1] and second.answer.tolist() == [0, 0, -1]  # 7 and 7.0 are one answer
    np.testing.assert_allclose(second.score, [0.5 - 0.75, 0.5 - 1.0, 0.5 - 1.25])
    np.testing.assert_allclose(second.weight, 1 / (1 + np.exp(-second.score)))
    (other, _), _ = candidates(read_scored(path, "mean", "math"), path)
    np.testing.assert_allclose(other.score, first.score / 2)


def test_bad_rows_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "outcome is missing": {"outcome": None},
        "process_rewards is missing": {"process_rewards": None},
        "step_rewards must be": {"step_rewards": ["a"]},
        "has sample 0 twice": {"sample": 0},
        "one sample": {"id": "alone"},
    }
    for words, change in cases.items():
        lines = rows()
        lines[4] = lines[4] | change
        if words == "one sample":
            lines = [*rows(), rows()[0] | change]
        path = write(tmp_path / "bad.jsonl", lines)
        with pytest.raises(InputError, match=words):
            candidates(read_scored(path, "total", "math"), path)
    assert main(["best-of-n", str(tmp_path / "nowhere.jsonl")]) == 2
    target = write(tmp_path / "there.json", [])
    assert main(["best-of-n", write(tmp_path / "s.jsonl", rows()), "--output", target]) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "best.json"
    assert main(["best-of-n", write(tmp_path / "s.jsonl", rows()), "--by", "min-step", "--output", str(out)]) == 0
    text = capsys.readouterr().out
    assert (
        "2 prompts, 3 samples each, chosen by min-step" in text
        and "| N | random | majority | weighted | best |" in text
    )
    written = json.loads(out.read_text())
    assert [row["n"] for row in written["rows"]] == [1, 2, 3]
    assert written["rows"][0]["methods"]["random"]["value"] == pytest.approx(2 / 3)
    assert written["rows"][2]["methods"]["best"]["value"] == 1.0
