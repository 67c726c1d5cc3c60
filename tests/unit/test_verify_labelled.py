"""Accuracy on real answers with labels. Reads the data beside the repository; skipped, loudly, where it is absent."""

import json
import random
from pathlib import Path

import pytest

from prime_megatron.verify import Answer, VerifyOptions, build_verifiers

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
OPTIONS = VerifyOptions(num_workers=2, timeout_s=60.0)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no labelled answers: {DATA} is absent")


def test_model_answers_to_gsm8k() -> None:
    answers, labels = [], []
    for line in (DATA / "model_answers" / "gsm8k_example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        ground_truth = "#### " + row["ground_truth"].rpartition("A:")[2]
        for model in MODELS:
            steps, marker, final = row[model]["solution"].rpartition("A:")
            # These models close with "A: 18"; ours are asked for a box.
            answers.append(Answer("math", f"{steps}\\boxed{{{final}}}" if marker else final, ground_truth))
            labels.append(row[model]["is_correct"])
    assert len(answers) == 1319 * 4
    with build_verifiers(OPTIONS) as verifiers:
        verdicts = verifiers.score(answers)
    assert [verdict.score == 1.0 for verdict in verdicts] == labels


def test_solutions_of_math_500_against_their_own_and_other_ground_truths() -> None:
    columns = json.loads((DATA / "math" / "math500.json").read_text())
    solutions = list(columns["solution"].values())
    truths = [columns["expected_answer"][key] for key in columns["solution"]]
    other = list(truths)
    random.Random(0).shuffle(other)
    other = other[:150]  # these mostly cost a computation each
    with build_verifiers(OPTIONS) as verifiers:
        own = verifiers.score([Answer("math", s, t) for s, t in zip(solutions, truths, strict=True)])
        shuffled = verifiers.score([Answer("math", s, t) for s, t in zip(solutions, other)])
    assert [v.verdict for v in own] == ["correct"] * 500
    # A shuffled one is right only where two problems happen to share the answer.
    assert [v.score == 1.0 for v in shuffled] == [a == b for a, b in zip(truths, other)]


def test_every_answer_of_math_train_is_itself_in_another_spelling() -> None:
    rows = json.loads((DATA / "math" / "math_train_7474.json").read_text())
    truths = [row["answer"] for row in rows if row["answer"]]
    with build_verifiers(OPTIONS) as verifiers:
        verdicts = verifiers.score(
            [Answer("math", "\\boxed{ " + t.replace(" ", "  ").replace("\\frac", "\\dfrac") + " }", t) for t in truths]
        )
    wrong = [truth for truth, verdict in zip(truths, verdicts, strict=True) if verdict.verdict != "correct"]
    assert wrong == []
