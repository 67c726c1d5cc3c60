"""Held-out figures: accuracy and pass@k count answers that are right in full, the score counts parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prime_megatron.config import EvalConfig, SamplingConfig
from prime_megatron.evaluate.held_out import Evaluator
from prime_megatron.rollout.generate import Draw
from prime_megatron.types import Group, Prompt, Sample

PROMPTS = [
    Prompt(uid=str(n), draw=n, token_ids=(1,), ability=ability, ground_truth="", data_source=source)
    for n, (ability, source) in enumerate([("code", "apps"), ("code", "taco"), ("math", "gsm8k")])
]
GREEDY = {"0": [(1.0, "correct")], "1": [(0.75, "wrong")], "2": [(1.0, "correct")]}
SAMPLED = {
    "0": [(1.0, "correct"), (0.9, "time_limit")],
    "1": [(0.75, "wrong"), (1.0, "wrong")],  # the first ten pass, a later one fails: score "original"
    "2": [(0.0, "wrong"), (0.0, "no_answer")],
}


class Answers:
    """Gives the answers above in a generator's place."""

    def groups(self, prompts: Sequence[Prompt], draw: Draw) -> list[Group]:
        outcomes = GREEDY if draw.sampling.greedy else SAMPLED
        return [
            Group(
                prompt,
                tuple(
                    Sample((2, 3), (0.0, 0.0), "stop", 0, outcome=outcome, verdict=verdict)
                    for outcome, verdict in outcomes[prompt.uid]
                ),
            )
            for prompt in prompts
        ]


def test_a_program_that_passes_some_tests_is_not_right() -> None:
    config = EvalConfig(samples_per_prompt=2)
    evaluator = Evaluator(PROMPTS, Answers(), config, SamplingConfig(), seed=0)  # type: ignore[arg-type]
    evaluation = evaluator.evaluate()
    figures = evaluation.figures
    assert figures["eval/accuracy"] == pytest.approx(2 / 3)
    assert figures["eval/score"] == pytest.approx(2.75 / 3)
    assert figures["eval/accuracy/ability/code"] == 0.5
    assert figures["eval/accuracy/ability/math"] == 1.0
    assert figures["eval/accuracy/data_source/taco"] == 0.0
    assert figures["eval/sampled_accuracy"] == pytest.approx(1 / 6)
    assert figures["eval/pass@1"] == pytest.approx(1 / 6)
    assert figures["eval/pass@2"] == pytest.approx(1 / 3)
    assert [len(group.samples) for group in evaluation.greedy] == [1, 1, 1]
    assert [[sample.verdict for sample in group.samples] for group in evaluation.sampled] == [
        [verdict for _, verdict in SAMPLED[prompt.uid]] for prompt in PROMPTS
    ]
