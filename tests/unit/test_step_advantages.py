"""The step's advantages: the fused path where it covers the config, and then equal to the definition; else that one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.cli.main import main
from prime_megatron.config import TrainConfig
from prime_megatron.config.reward_path import describe_reward_path, is_fused, uncovered
from prime_megatron.step import advantages as module
from prime_megatron.step.advantages import defined_advantages, fused_advantages, step_advantages
from prime_megatron.types import Advantages, Scores
from tests.support.algo_oracle import Case, close, make_case, on_ranks

COVERED: dict[str, dict[str, Any]] = {
    "default": {},
    "code": {"advantage": {"leave_one_out": "code"}},
    "plain": {"prm": {"norm": "none", "scale_by_beta": False}, "advantage": {"whiten": False}},
    "weights": {"advantage": {"process_weight": 2.0, "outcome_weight": 0.5}},
    "discounts": {"advantage": {"gamma_process": 0.9, "gamma_outcome": 0.95}},
    "one-discount": {"advantage": {"gamma_outcome": 0.5}},
    "floored": {"prm": {"ratio_floor": 0.05}},
    "grpo": {"advantage": {"estimator": "grpo"}},
    "dr.grpo": {"advantage": {"estimator": "grpo", "scale_by_deviation": False, "whiten": False}},
    "grpo-outcome-only": {"advantage": {"estimator": "grpo", "process_weight": 0.0, "whiten": False}},
    "local": {
        "prm": {"ratio_floor": 0.05, "norm": "none", "beta": 0.5},
        "advantage": {"gamma_process": 0.0, "process_weight": 3.0},
    },
    "reinforce": {"advantage": {"estimator": "reinforce"}},
    "reinforce++": {"advantage": {"estimator": "reinforce++", "whiten": False}},
    "outcome-only": {"advantage": {"process_weight": 0.0}, "prm": {"granularity": "step", "use_gt": True}},
}
UNCOVERED: dict[str, tuple[dict[str, Any], str]] = {
    "gae": ({"advantage": {"estimator": "gae"}}, "advantage.estimator gae"),
    "prime_value": ({"advantage": {"estimator": "prime_value"}}, "advantage.estimator prime_value"),
    "prefix_td": ({"advantage": {"estimator": "prefix_td"}}, "advantage.estimator prefix_td"),
    "spro": ({"advantage": {"estimator": "spro"}}, "advantage.estimator spro"),
    "min-form": ({"prm": {"granularity": "step", "softmin_temperature": 0.1}}, "prm.granularity step"),
    "step": ({"prm": {"granularity": "step"}}, "prm.granularity step"),
    "whole": ({"prm": {"granularity": "whole"}}, "prm.granularity whole"),
    "smoothed": ({"prm": {"smoothing_lambda": 0.5}}, "prm.smoothing_lambda 0.5"),
    "ground truth": ({"prm": {"use_gt": True}}, "prm.use_gt"),
    "kl": ({"policy": {"kl_place": "reward", "kl_coef": 0.1}}, "policy.kl_place reward"),
}


def config_of(over: dict[str, Any]) -> TrainConfig:
    base = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["a"]}}
    return TrainConfig.model_validate_json(json.dumps(base | over))


def scores_of(case: Case, config: TrainConfig) -> Scores:
    prm, ref, values, kl = (case.pack(x).float() for x in (case.prm, case.ref, case.values, case.kl))
    if config.advantage.process_weight == 0:
        return Scores(None, None, None, None)
    return Scores(ref + kl, ref, ref, prm, torch.where(case.batch().response_mask_T, values, 0.0))


def largest_difference(one: Advantages, two: Advantages) -> float:
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(COVERED)), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_fused_path_is_the_definition(seed: int, name: str, sizes: list[int]) -> None:
    config, case = config_of(COVERED[name]), make_case(seed, sizes, 17, binary=False)
    if case.length.sum() < 2:
        return  # a deviation of one token is not defined
    scores, batch = scores_of(case, config), case.batch()
    assert is_fused(config)
    fused = fused_advantages(config, batch, scores, LOCAL)
    assert all(values.dtype == torch.float32 for values in vars(fused).values())
    assert largest_difference(fused, defined_advantages(config, batch, scores, LOCAL)) <= 1e-5


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3], []], [[3, 0], [1, 2]], [[2], [0, 3], [1]]])
def test_ranks_change_nothing(name: str, groups: list[list[int]]) -> None:
    """Every rank's advantages are its part of the whole batch's, a rank without sequences included."""
    config, whole = config_of(COVERED[name]), make_case(4, [3, 4, 2, 4], 12, binary=False)

    def work(part: Case, reduce: Reduction) -> Advantages:
        return step_advantages(config, part.batch(), scores_of(part, config), reduce)

    expected = whole.unpack(work(whole, LOCAL).advantages_T)
    parts = [whole.part(chosen) for chosen in groups]
    for chosen, part, got in zip(groups, parts, on_ranks(parts, work), strict=True):
        rows = [i for g in chosen for i in range(whole.n) if whole.group[i] == g]
        order = [i for i in range(whole.n) if whole.group[i] in chosen]
        assert sorted(rows) == order
        assert abs(part.unpack(got.advantages_T) - expected[order]).max(initial=0.0) <= 1e-6


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_the_fused_path_does_not_have_takes_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    over, reason = UNCOVERED[name]
    config, case = config_of(over), make_case(1, [4, 4], 9)
    assert uncovered(config) == reason
    assert reason in describe_reward_path(config)
    monkeypatch.setattr(module, "process_advantages", None)  # to call it would fail
    scores = scores_of(case, config)
    got = step_advantages(config, case.batch(), scores, LOCAL)
    assert largest_difference(got, defined_advantages(config, case.batch(), scores, LOCAL)) == 0.0


def test_spro_reads_the_policy_in_the_prm_s_place() -> None:
    """Old log-probs against the reference; no PRM has scored anything."""
    config = config_of({"advantage": {"estimator": "spro", "whiten": False}, "prm": {"beta": 0.3, "norm": "none"}})
    case = make_case(3, [4, 3], 9)
    scores = dataclasses.replace(scores_of(case, config), prm_logprobs_T=None)
    got = step_advantages(config, case.batch(), scores, LOCAL)
    inside = np.arange(case.prm.shape[1])[None, :] < case.length[:, None]
    close(case.unpack(got.process_rewards_T), np.where(inside, 0.3 * case.kl, 0.0))


def test_naive_is_the_definition() -> None:
    config, case = config_of({"advantage": {"impl": "naive"}}), make_case(1, [4, 4], 9)
    scores = scores_of(case, config)
    got = step_advantages(config, case.batch(), scores, LOCAL)
    assert largest_difference(got, defined_advantages(config, case.batch(), scores, LOCAL)) == 0.0
    assert "naive" in describe_reward_path(config)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_an_implementation_that_was_asked_for_serves(impl: str) -> None:
    case = make_case(2, [4, 3], 9)
    config = config_of({"advantage": {"impl": impl}})
    scores = scores_of(case, config)
    fused, defined = (f(config, case.batch(), scores, LOCAL) for f in (step_advantages, defined_advantages))
    assert largest_difference(fused, defined) <= 1e-5


def test_an_infinite_score_outside_the_response_does_not_count() -> None:
    config, case = config_of({}), make_case(2, [4, 3], 9)
    scores = scores_of(case, config)
    assert scores.prm_logprobs_T is not None
    dirty_T = torch.where(case.batch().response_mask_T, scores.prm_logprobs_T, torch.inf)
    dirty = dataclasses.replace(scores, prm_logprobs_T=dirty_T)
    got, clean = (step_advantages(config, case.batch(), x, LOCAL) for x in (dirty, scores))
    assert largest_difference(got, clean) == 0.0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.steps=1", "advantages: fused reward path (Triton on a GPU, torch on a CPU)"),
        ("prm.granularity=step", "advantages: the definition, not fused (the fused reward path does not have "
                                 "prm.granularity step)"),
        ("advantage.impl=naive", "advantages: the definition, not fused (advantage.impl naive)"),
    ],
)  # fmt: skip
def test_plan_step_says_which(override: str, line: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {output_dir: o, steps: 2}\nmodels: {policy: {path: m}}\ndata: {train: [a.jsonl]}\n")
    assert main(["plan-step", str(path), override]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line
