"""Held-out figures: accuracy and pass@k count answers that are right in full, the score counts parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from prime_megatron.config import EvalConfig, SamplingConfig
from prime_megatron.evaluate.held_out import Evaluation, Evaluator, HeldOut, held_out_sets, suite_metrics
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw
from prime_megatron.rollout.sampling import EVAL
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

    engine = SimpleNamespace(version=0)

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


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def evaluation_at(step: int, sets: list[HeldOut]) -> Evaluation:
    return Evaluator(sets, Answers()).evaluate(step, last_step=10)  # type: ignore[arg-type]


@pytest.mark.usefixtures("world")
def test_a_program_that_passes_some_tests_is_not_right() -> None:
    evaluation = evaluation_at(0, held_out_sets(PROMPTS, EvalConfig(samples_per_prompt=2), SamplingConfig(), seed=0))
    figures = evaluation.figures
    assert figures["eval/accuracy"] == evaluation.headline == pytest.approx(2 / 3)
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


def named(name: str, every: int) -> HeldOut:
    how = Draw(0, 0, EVAL, Sampling(8, greedy=True), 1)
    return HeldOut(PROMPTS, how, every, None, lambda figures: suite_metrics(name, figures), name)


@pytest.mark.usefixtures("world")
def test_every_set_has_a_schedule_of_its_own() -> None:
    sets = [named("often", 1), named("seldom", 5)]
    asked = {
        step: [name for name in ("often", "seldom") if f"eval/{name}/accuracy" in evaluation_at(step, sets).figures]
        for step in (0, 1, 4, 5, 10)
    }
    assert asked == {
        0: ["often", "seldom"], 1: ["often"], 4: ["often"], 5: ["often", "seldom"], 10: ["often", "seldom"],
    }  # fmt: skip
    assert evaluation_at(1, sets).headline is None, "a macro average over some of the sets would be another figure"
    whole = evaluation_at(5, sets)
    assert whole.headline == whole.figures["eval/macro/accuracy"] == pytest.approx(2 / 3)
    assert [Evaluator([sets[1]], Answers()).due(step, 10) for step in (0, 1, 5, 10)] == [True, False, True, True]  # type: ignore[arg-type]
