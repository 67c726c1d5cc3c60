"""Soft punishment of long responses: DAPO's equation 13 in numpy, and where it acts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.overlong import overlong_penalty, overlong_statistics
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import AdvantageAlgorithm, TrainConfig
from prime_megatron.step.advantages import defined_advantages, step_advantages
from prime_megatron.types import Scores
from tests.support.algo_oracle import Case, cases, make_case


def equation_13(length: int, limit: int, cache: int) -> float:
    if length <= limit - cache:
        return 0.0
    return ((limit - cache) - length) / cache if length <= limit else -1.0


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 17), st.sampled_from([0.5, 1.0]))
def test_against_the_formula(case: Case, buffer: int, size: float) -> None:
    config = AdvantageAlgorithm(overlong_buffer=buffer, overlong_penalty=size)
    limit = max(17, buffer)
    wanted = [-size * equation_13(int(n), limit, buffer) for n in case.length]
    assert overlong_penalty(case.batch(), config, limit).tolist() == pytest.approx(wanted, abs=1e-6)
    figures = finish(overlong_statistics(case.batch(), config, limit))
    assert figures["outcome/overlong_penalty"] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert figures["outcome/overlong"] == pytest.approx(np.mean([x > 0 for x in wanted]))


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_outcomes_of_the_advantages_are_punished_and_no_others(estimator: str) -> None:
    """On the fused path and by the definition: advantages of outcomes less the penalty, process rewards unchanged."""
    case = make_case(2, [4, 4], 12)

    def config(**advantage: object) -> TrainConfig:
        base = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["a"]}}
        rollout = {"sampling": {"max_response_tokens": 12}}
        given = {"advantage": {"estimator": estimator, **advantage}, "rollout": rollout, "prm": {"use_gt": False}}
        return TrainConfig.model_validate_json(json.dumps(base | given))

    punished = Case(**{**case.__dict__, "outcome": case.outcome - [-equation_13(int(n), 12, 8) for n in case.length]})
    scores = Scores(None, case.pack(case.ref).float(), None, case.pack(case.prm).float())
    for make in (step_advantages, defined_advantages):
        got = make(config(overlong_buffer=8), case.batch(), scores, LOCAL)
        want = make(config(), punished.batch(), scores, LOCAL)
        plain = make(config(), case.batch(), scores, LOCAL)
        np.testing.assert_allclose(got.advantages_T, want.advantages_T, atol=1e-6)
        np.testing.assert_allclose(got.process_rewards_T, plain.process_rewards_T, atol=1e-6)
        assert abs(got.advantages_T - plain.advantages_T).max() > 1e-2
