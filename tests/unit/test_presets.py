import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from prime_megatron.algo.advantage import compute_advantages
from prime_megatron.algo.process_reward import process_rewards
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import AdvantageAlgorithm, PolicyAlgorithm, PrmAlgorithm, TrainConfig
from prime_megatron.config.check import check_train_config, needs_prm
from prime_megatron.config.presets import PRESETS
from tests.support.algo_oracle import (
    Case,
    cases,
    close,
    make_case,
    masked_step_advantage,
    prefix_td,
    z_scores,
)

NAMES = ("default", "local_credit", "paper", "original", "recipe")


def _section(name: str, section: str, model: type) -> Any:
    return model.model_validate_json(json.dumps(PRESETS[name][section]))


def _padded(case: Case, rows: list[list[float]]) -> np.ndarray:
    out = np.zeros_like(case.prm)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _reward_oracle(case: Case, name: str) -> list[list[float]]:
    """Process rewards as the notes give them for each source, on lists, without reading the preset."""
    rewards = []
    for i in range(case.n):
        q = [float(case.prm[i, t] - case.ref[i, t]) for t in range(case.length[i])]
        if name == "local_credit":
            pairs = [(math.exp(case.prm[i, t]), math.exp(case.ref[i, t])) for t in range(case.length[i])]
            rewards.append([0.5 * math.log((p + 0.05) / (r + 0.05)) for p, r in pairs])
            continue
        rewards.append(q if name == "original" else [0.05 * x for x in q])
    if name in ("paper", "local_credit"):
        return rewards
    largest = max(abs(sum(row[t:])) for row in rewards for t in range(len(row)))
    return [[x / (largest + 1e-6) for x in row] for row in rewards]


def _advantage_oracle(case: Case, rewards: list[list[float]], name: str) -> list[list[float]]:
    means = [sum(row) / len(row) for row in rewards]
    returns = []
    for i, row in enumerate(rewards):
        siblings = [j for j in range(case.n) if case.group[j] == case.group[i]]
        others, k = [j for j in siblings if j != i], len(siblings)
        if name in ("original", "recipe"):
            base = sum(means[j] for j in siblings) / (k - 1)
            centred = [k / (k - 1) * x - base for x in row]
        else:
            centred = [x - sum(means[j] for j in others) / (k - 1) for x in row]
        outcome = float(case.outcome[i]) - sum(float(case.outcome[j]) for j in others) / (k - 1)
        if name == "local_credit":
            returns.append([3 * x + outcome for x in centred])
        else:
            returns.append([sum(centred[t:]) + outcome for t in range(len(row))])
    if name == "paper":
        return returns
    flat = [x for row in returns for x in row]
    mean = sum(flat) / len(flat)
    variance = sum((x - mean) ** 2 for x in flat) / (len(flat) - 1)
    return [[(x - mean) / (variance + 1e-8) ** 0.5 for x in row] for row in returns]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(case=cases(min_size=2))
def test_from_log_probs_to_advantages(name: str, case: Case) -> None:
    prm, advantage = _section(name, "prm", PrmAlgorithm), _section(name, "advantage", AdvantageAlgorithm)
    batch = case.batch()
    rewards_T = process_rewards(batch, case.pack(case.prm), case.pack(case.ref), prm, LOCAL)
    got = compute_advantages(batch, rewards_T, advantage, prm, LOCAL)
    rewards = _reward_oracle(case, name)
    close(case.unpack(got.process_rewards_T), _padded(case, rewards))
    close(case.unpack(got.advantages_T), _padded(case, _advantage_oracle(case, rewards, name)))


def _config(name: str) -> TrainConfig:
    """The preset below a minimal file, merged as load.py does: key by key."""

    def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        out = copy.deepcopy(below)
        for key, value in above.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = merge(out[key], value) if both else value
        return out

    given_by_user = {
        "preset": name,
        "run": {"output_dir": "out", "steps": 100},
        "models": {"policy": {"path": "model"}},
        "data": {"train": ["train.jsonl"]},
    }
    return TrainConfig.model_validate_json(json.dumps(merge(PRESETS[name], given_by_user)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_consistent(name: str) -> None:
    assert check_train_config(_config(name), world_size=8) == ()


def test_the_default_preset_is_the_config_s_own_defaults() -> None:
    assert _section("default", "prm", PrmAlgorithm) == PrmAlgorithm()
    assert _section("default", "advantage", AdvantageAlgorithm) == AdvantageAlgorithm()
    assert _section("default", "policy", PolicyAlgorithm) == PolicyAlgorithm()
    config, bare = _config("default"), TrainConfig.model_validate_json(
        json.dumps({
            "run": {"output_dir": "out", "steps": 100},
            "models": {"policy": {"path": "model"}},
            "data": {"train": ["train.jsonl"]},
        })
    )  # fmt: skip
    assert config == bare


def test_published_sizes() -> None:
    for name in ("paper", "original"):
        config = _config(name)
        assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (256, 4)
        assert (config.models.policy.optimizer.lr, config.models.prm.optimizer.lr) == (5e-7, 1e-6)
        assert config.models.prm.optimizer.clip_grad == 10.0
        assert config.models.policy.num_mini_batches == config.models.prm.num_mini_batches == 4
        assert (config.data.max_prompt_tokens, config.rollout.sampling.max_response_tokens) == (1024, 3072)


def test_presets_differ_where_the_sources_do() -> None:
    case = make_case(0, [4, 4], 9)
    seen = []
    for name in ("default", "paper", "original", "recipe"):
        prm, advantage = _section(name, "prm", PrmAlgorithm), _section(name, "advantage", AdvantageAlgorithm)
        rewards_T = process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), prm, LOCAL)
        seen.append(compute_advantages(case.batch(), rewards_T, advantage, prm, LOCAL).advantages_T)
    # original and recipe differ in beta alone, which batch norm cancels but for its 1e-6, and in the update order.
    close(seen[2], seen[3], 1e-4)
    assert float((seen[0] - seen[1]).abs().max()) > 1e-3
    assert float((seen[0] - seen[2]).abs().max()) > 1e-3
    assert PRESETS["original"]["prm"]["update"] != PRESETS["recipe"]["prm"]["update"]


def test_presets_share_nothing() -> None:
    before = copy.deepcopy(PRESETS["recipe"])
    PRESETS["paper"]["rollout"]["filter"]["lower"] = 0.3
    try:
        assert PRESETS["recipe"] == before
    finally:
        PRESETS["paper"]["rollout"]["filter"]["lower"] = 0.2


def test_local_credit_s_prm_learns_three_times_as_fast() -> None:
    policy, prm = _config("local_credit").models.policy, _config("local_credit").models.prm
    assert prm.optimizer.lr == pytest.approx(3 * policy.optimizer.lr)
    assert policy.optimizer.betas == prm.optimizer.betas == (0.9, 0.98)
    # Ten steps of the run each: the PRM makes four optimizer steps in one of them.
    assert (policy.optimizer.warmup_steps, prm.optimizer.warmup_steps / prm.num_mini_batches) == (10, 10)


@settings(max_examples=60, deadline=None)
@given(case=cases(min_size=2))
def test_ipvrm_and_spro_from_log_probs_to_advantages(case: Case) -> None:
    """GRPO's outcome at every token, and to it 0.05 times the prefix's differences or the masked step advantage."""
    q = np.array(
        [[x if t < case.length[i] else 0.0 for t, x in enumerate(row)] for i, row in enumerate(case.prm - case.ref)]
    )
    for name, beta, weight in (("ipvrm", 10.0, 0.05), ("spro", 0.05, 1.0)):
        prm, advantage = _section(name, "prm", PrmAlgorithm), _section(name, "advantage", AdvantageAlgorithm)
        rewards_T = process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), prm, LOCAL)
        got = compute_advantages(case.batch(), rewards_T, advantage, prm, LOCAL)
        close(case.unpack(got.process_rewards_T), beta * q)
        process = prefix_td(case, beta * q, 1.0) if name == "ipvrm" else masked_step_advantage(case, beta * q)
        wanted = weight * process
        for i, (mean, deviation) in enumerate(z_scores(case, case.outcome.tolist())):
            wanted[i, : case.length[i]] += (case.outcome[i] - mean) / deviation
        close(case.unpack(got.advantages_T), wanted)


def test_what_ipvrm_and_spro_build() -> None:
    ipvrm, spro = _config("ipvrm"), _config("spro")
    given = (ipvrm.prm.loss, ipvrm.prm.margin, ipvrm.prm.adaptive_boundary, ipvrm.prm.difficulty_weights)
    assert given == ("prefix_value", 5.0, True, True) and needs_prm(ipvrm)
    assert (ipvrm.rollout.prompts_per_step, ipvrm.rollout.samples_per_prompt) == (512, 16)
    assert not needs_prm(spro)


@pytest.mark.parametrize("name", ["dapo", "drgrpo", "gspo", "cispo"])
def test_objectives_of_other_papers(name: str) -> None:
    """What the notes give for each, and what they share: group-relative outcomes, no PRM, no KL."""
    config = _config(name)
    advantage, policy, minis = config.advantage, config.policy, config.models.policy.num_mini_batches
    assert (advantage.estimator, advantage.process_weight, advantage.whiten) == ("grpo", 0.0, False)
    assert policy.kl_place == "none" and not needs_prm(config)
    given = (policy.objective, policy.clip_low, policy.clip_high, policy.loss_aggregation, minis)
    assert (
        given
        == {
            "dapo": ("ppo", 0.2, 0.28, "token_mean", 16),
            "drgrpo": ("ppo", 0.2, 0.2, "constant_length", 1),
            "gspo": ("gspo", 3e-4, 4e-4, "sequence_mean", 4),
            "cispo": ("cispo", 1.0, 0.2, "token_mean", 16),
        }[name]
    )
    assert advantage.scale_by_deviation == (name != "drgrpo")
    assert advantage.overlong_buffer == (4096 if name == "dapo" else None)


@settings(max_examples=50, deadline=None)
@given(case=cases(min_size=2))
def test_dr_grpo_divides_by_nothing(case: Case) -> None:
    config = _config("drgrpo")
    got = compute_advantages(case.batch(), None, config.advantage, config.prm, LOCAL)
    wanted = np.zeros_like(case.prm)
    for i in range(case.n):
        wanted[i, : case.length[i]] = case.outcome[i] - np.mean([case.outcome[j] for j in case.siblings(i)])
    close(case.unpack(got.advantages_T), wanted)
