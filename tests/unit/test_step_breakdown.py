"""Figures by ability and by data source against numpy, over ranks; what the console says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prime_megatron.algo.filtering import FilterTally
from prime_megatron.algo.labels import labels_of, mean_by_label
from prime_megatron.algo.statistics import Statistics
from prime_megatron.config import FilterConfig
from prime_megatron.metrics.sinks import breakdown_lines
from prime_megatron.rollout.collect import Collected
from prime_megatron.run.verification import Verification, verify_speed
from prime_megatron.step.breakdown import prm_figures, prm_sums, rollout_figures
from prime_megatron.types import Group, Prompt, Sample
from prime_megatron.verify.pool import Usage

KINDS = [("code", "apps"), ("code", "taco"), ("math", "numina/cn_k12"), ("math", ""), ("code", "apps")]


def group(index: int, outcomes: list[float], verdicts: list[str]) -> Group:
    ability, source = KINDS[index]
    prompt = Prompt(
        uid=str(index), draw=index, token_ids=(1,), ability=ability, ground_truth="", data_source=source, text=""
    )
    samples = [
        Sample(token_ids=(2,), logprobs=(0.0,), finish="stop", version=0, text="", outcome=o, verdict=v, reason="")
        for o, v in zip(outcomes, verdicts)
    ]
    return Group(prompt, tuple(samples))


GROUPS = [
    group(0, [1.0, 0.5], ["correct", "wrong"]),
    group(1, [0.0, 0.0], ["time_limit", "no_code"]),
    group(2, [1.0, 1.0], ["correct", "correct"]),
    group(3, [0.0, 1.0], ["no_answer", "correct"]),
    group(4, [0.25, 0.0], ["exception", "died"]),
]


def collected() -> Collected:
    return Collected(
        groups=GROUPS, generated=GROUPS, rejected=[], rounds=1, tally=FilterTally(), carried_in=0, expired=0
    )


def test_outcome_filter_and_verdicts() -> None:
    figures = rollout_figures(collected(), FilterConfig(lower=0.2, upper=0.8))
    assert figures["rollout/outcome/ability/code"] == pytest.approx(np.mean([0.75, 0.0, 0.125]))
    assert figures["rollout/outcome/ability/math"] == pytest.approx(0.75)
    assert figures["rollout/outcome/data_source/apps"] == pytest.approx(np.mean([0.75, 0.125]))
    assert figures["rollout/outcome/data_source/numina/cn_k12"] == 1.0
    assert figures["rollout/outcome/data_source/none"] == 0.5
    assert figures["rollout/pass_rate/ability/code"] == pytest.approx(1 / 3)
    assert figures["rollout/pass_rate/ability/math"] == 0.5
    counts = {key.removeprefix("rollout/verdict_"): n for key, n in figures.items() if "/verdict_" in key and n}
    assert counts == {"correct": 4, "wrong": 1, "time_limit": 1, "no_code": 1, "no_answer": 1, "exception": 1}


def test_prm_accuracy_is_the_same_however_groups_are_spread() -> None:
    q_N = torch.tensor([0.3, -0.2, 0.1, -1.0, 0.0, 2.0, -0.5, 0.5, -0.1, 0.2])
    outcome_N = torch.tensor([o for g in GROUPS for o in g.outcomes])
    right = np.where(q_N.numpy() == 0, 0.5, (q_N.numpy() > 0) == (outcome_N.numpy() > 0.5))
    labels = [labels_of(g.prompt) for g in GROUPS for _ in g.samples]
    expected = {}
    for label in sorted({label for pair in labels for label in pair}):
        expected[f"prm/accuracy/{label}"] = right[[label in pair for pair in labels]].mean()
    for cut in range(len(GROUPS) + 1):
        parts = [
            prm_sums(q_N[: 2 * cut], outcome_N[: 2 * cut], GROUPS[:cut], GROUPS),
            prm_sums(q_N[2 * cut :], outcome_N[2 * cut :], GROUPS[cut:], GROUPS),
        ]
        assert parts[0].sums.keys() == parts[1].sums.keys()
        reduced = Statistics({key: parts[0].sums[key] + parts[1].sums[key] for key in parts[0].sums})
        assert prm_figures(reduced) == pytest.approx(expected)


def test_a_label_without_sequences_has_no_figure() -> None:
    sums = prm_sums(torch.zeros(2), torch.zeros(2), GROUPS[:1], GROUPS)
    assert set(prm_figures(sums)) == {"prm/accuracy/ability/code", "prm/accuracy/data_source/apps"}


def test_means_by_label() -> None:
    values = mean_by_label("eval/accuracy", [(g.prompt, float(i)) for i, g in enumerate(GROUPS)])
    assert values["eval/accuracy/ability/code"] == pytest.approx((0 + 1 + 4) / 3)
    assert values["eval/accuracy/data_source/apps"] == 2.0
    assert mean_by_label("x", []) == {}


def test_the_console_tells_apart_what_there_is() -> None:
    def values(abilities: list[str], sources: list[str]) -> dict[str, float]:
        names = [f"ability/{a}" for a in abilities] + [f"data_source/{s}" for s in sources]
        return {f"{figure}/{name}": 0.5 for figure in ("rollout/outcome", "prm/accuracy") for name in names}

    assert breakdown_lines(values(["math"], ["gsm8k"])) == []
    assert breakdown_lines(values(["code", "math"], ["apps", "gsm8k"])) == [
        "code  outcome 0.500  PRM acc 0.500",
        "math  outcome 0.500  PRM acc 0.500",
    ]
    several = breakdown_lines(values(["math"], ["gsm8k", "numina/cn_k12"]))
    assert [line.split()[0] for line in several] == ["gsm8k", "numina/cn_k12"]
    assert len(breakdown_lines(values(["code", "math"], ["apps", "taco", "gsm8k"]))) == 5


def test_speed_of_verification_over_ranks() -> None:
    ranks = [
        Verification(Usage(num_answers=2, num_tests=20, queue_wait_s=1.0, busy_s=4.0), waited_s=0.5),
        Verification(Usage(num_answers=2, num_tests=0, queue_wait_s=3.0, busy_s=1.0), waited_s=2.0),
    ]
    assert verify_speed(ranks, 10.0) == {
        "speed/verify_tests": 20.0,
        "speed/verify_wait_share": 0.2,
        "speed/verify_queue_wait_s": 1.0,
        "speed/verify_tests_per_s": 4.0,
    }
    idle = verify_speed([Verification(Usage(), 0.0)], 10.0)
    assert idle == {"speed/verify_tests": 0.0, "speed/verify_wait_share": 0.0}
    assert all(math.isfinite(value) for value in idle.values())
