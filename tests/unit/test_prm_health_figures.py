"""Whether the PRM is still right: figures against numpy, the alarm's rule, what it changes, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from prime_megatron.algo.health import Alarm, auc, correlation, ranking, response_sums, reward_place
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import HealthConfig, PrmAlgorithm, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_health import pair_accuracy_deviation
from prime_megatron.errors import InputError
from prime_megatron.run.alarms import Alarms
from prime_megatron.step.advantages import step_advantages
from prime_megatron.step.plan import plan_step
from prime_megatron.types import Scores
from tests.support.algo_oracle import make_case

HEALTH = {"every": 5, "steps": 4, "margin": 0.2}


def config_of(**sections: dict[str, Any]) -> TrainConfig:
    base = {"run": {"output_dir": "o", "steps": 40}, "models": {"policy": {"path": "m"}}, "data": {"train": ["a"]}}
    return TrainConfig.model_validate_json(json.dumps(base | sections))


@pytest.mark.parametrize("seed", range(20))
def test_auc_and_correlation_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, right = rng.integers(-3, 4, 30) / 2, rng.random(30) < 0.4  # with ties
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[right] for b in score[~right]]
    assert auc(torch.tensor(score), torch.tensor(right)) == pytest.approx(np.mean(pairs), abs=1e-12)
    length = rng.integers(1, 9, 30).astype(float)
    expected = np.corrcoef(score, length)[0, 1]
    assert correlation(torch.tensor(score), torch.tensor(length)) == pytest.approx(expected, abs=1e-12)


def test_figures_of_one_kind_are_nothing() -> None:
    assert np.isnan(auc(torch.tensor([1.0, 2.0]), torch.tensor([True, True])))
    assert correlation(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])) == 0.0


def calibration(p: np.ndarray, o: np.ndarray) -> float:
    """Expected calibration error over ten bins, from its definition."""
    place = np.minimum((p * 10).astype(int), 9)
    return sum(abs(p[place == b].mean() - o[place == b].mean()) * (place == b).mean() for b in set(place.tolist()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("loss", "floor", "scaled"), [("ce", 0.0, True), ("ce_intercept", 0.1, False)])
def test_figures_against_numpy(seed: int, loss: str, floor: float, scaled: bool) -> None:
    """All of a batch's figures: shares, means, correlation, calibration and Brier score."""
    case = make_case(seed, [3, 4, 2, 3], 6)
    batch, beta = case.batch(), 0.7
    settings = {"beta": beta, "loss": loss, "ratio_floor": floor, "scale_by_beta": scaled}
    config = PrmAlgorithm.model_validate(settings, strict=False)
    tokens = np.random.default_rng(seed + 100).integers(0, 5, batch.tokens_T.numel())
    object.__setattr__(batch, "tokens_T", torch.tensor(tokens))
    form = torch.tensor([False, True, False, False, True])
    sums = response_sums(batch, case.pack(case.prm), case.pack(case.ref), form, config)
    length = case.length.astype(float)
    told = reward_place(sums, batch.outcome_N.double(), torch.tensor(length))

    q = np.array([(case.prm - case.ref)[i, : case.length[i]].sum() for i in range(case.n)])
    size, on_form, on_last, marks, mean = 0.0, 0.0, 0.0, 0, []
    for i in range(case.n):
        n, start = case.length[i], int(batch.cu_seqlens[i]) + case.prompt_len[i]
        prm, ref = np.exp(case.prm[i, :n]), np.exp(case.ref[i, :n])
        reward = (beta if scaled else 1.0) * np.log((prm + floor) / (ref + floor))
        marked = np.isin(tokens[start : start + n - 1], [1, 4])
        size, on_last = size + abs(reward).sum(), on_last + abs(reward[-1])
        on_form, marks = on_form + abs(reward[:-1])[marked].sum(), marks + marked.sum()
        mean.append(reward.mean())
    right = case.outcome > 0.5
    expected = {
        "delimiter_share": on_form / size,
        "delimiter_tokens": marks / length.sum(),
        "last_share": on_last / size,
        "length_correlation": np.corrcoef(q, length)[0, 1],
        "reward_right": np.mean(np.array(mean)[right]),
        "reward_wrong": np.mean(np.array(mean)[~right]),
    }
    assert told == pytest.approx(expected, abs=1e-6)

    mu = np.clip([case.outcome[case.siblings(i)].mean() for i in range(case.n)], 1e-6, 1 - 1e-6)
    p = 1 / (1 + np.exp(-beta * q - (np.log(mu / (1 - mu)) if loss == "ce_intercept" else 0.0)))
    ranked = ranking(sums.prm_N - sums.ref_N, batch.outcome_N.double(), batch.group_N, config)
    assert ranked["calibration_error"] == pytest.approx(calibration(p, case.outcome), abs=1e-6)
    assert ranked["brier"] == pytest.approx(np.mean((p - case.outcome) ** 2), abs=1e-6)


def changes(gains: list[float], **settings: Any) -> list[int]:
    alarm = Alarm(HealthConfig(every=1, **settings))
    found = []
    for gain in gains:
        found.append(alarm.check(0.5 + gain, 0.5))
        again = Alarm(alarm.config)
        again.restore(json.loads(json.dumps(alarm.state())))
        alarm = again  # a resume between any two checks changes nothing
    return found


def test_the_alarm_begins_and_ends_after_checks_in_a_row() -> None:
    low, between, high = -0.1, -0.04, 0.0
    assert changes([low, low, low]) == [0, 1, 0]
    assert changes([low, between, low, high, low, low]) == [0, 0, 0, 0, 0, 1]
    assert changes([low, low, high, between, high, low, high, high]) == [0, 1, 0, 0, 0, 0, 0, -1]
    assert changes([low, high, high], checks=1) == [1, -1, 0]
    assert changes([float("nan")] * 3 + [low, low]) == [0, 0, 0, 0, 1]


def test_a_negative_margin_asks_the_prm_to_be_better() -> None:
    assert changes([0.0, 0.01, 0.02, 0.03], margin=-0.02) == [0, 1, 0, -1]


def test_the_deviation_by_chance() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, 4))
    shares = (scores[:, :2, None] > scores[:, None, 2:]).mean((1, 2))
    assert pair_accuracy_deviation(1, 4) == pytest.approx(shares.std(), rel=0.02)
    assert pair_accuracy_deviation(16, 4) == pair_accuracy_deviation(1, 4) / 4


WITHOUT: dict[str, dict[str, Any]] = {
    "fused": {},
    "uncovered": {"prm": {"granularity": "step", "use_gt": True}},
    "grpo": {"advantage": {"estimator": "grpo"}, "prm": {"ratio_floor": 0.05, "norm": "none"}},
    "kl": {"policy": {"kl_place": "reward", "kl_coef": 0.1}},
    "gae": {"advantage": {"estimator": "gae"}},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_the_prm_as_without_process_weight(name: str) -> None:
    """To the last bit, whatever the PRM says, and in the path that such a run takes."""
    case = make_case(3, [3, 4, 2], 6)
    batch, over = case.batch(), WITHOUT[name]
    prm, ref, values, old = (case.pack(x).float() for x in (case.prm, case.ref, case.values, case.kl))
    scores = Scores(old, ref, ref, prm, values)
    found = step_advantages(config_of(**over), batch, scores, LOCAL, process=False)
    plain = config_of(**over | {"advantage": over.get("advantage", {}) | {"process_weight": 0.0}})
    expected = step_advantages(plain, batch, Scores(old, None, ref, None, values), LOCAL)
    for field in ("process_rewards_T", "returns_T", "advantages_T"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    assert not torch.equal(step_advantages(config_of(**over), batch, scores, LOCAL).advantages_T, found.advantages_T)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "off": ({"prm": {"on_collapse": "freeze"}}, "prm.on_collapse: freeze waits for an alarm of prm.health"),
    "no PRM": ({"prm": {"health": HEALTH}, "advantage": {"process_weight": 0.0}}, "prm.health.every: this run has no"),
    "spro": (
        {"prm": {"health": HEALTH}, "advantage": {"estimator": "spro"}},
        "prm.health.every: this run has no PRM to check (advantage.estimator spro)",
    ),
    "never learns": ({"prm": {"health": HEALTH, "update": "none"}}, "prm.health.every: a PRM that never learns"),
    "one response": (
        {
            "prm": {"health": HEALTH},
            "rollout": {"samples_per_prompt": 1},
            "advantage": {"estimator": "reinforce"},
        },
        "prm.health.every: pairs are made of a prompt's responses",
    ),
    "no outcome": (
        {"prm": {"health": HEALTH, "on_collapse": "outcome_only"}, "advantage": {"outcome_weight": 0.0}},
        "prm.on_collapse: outcome_only would leave no advantage",
    ),
    "the PRM's values": (
        {"prm": {"health": HEALTH, "on_collapse": "outcome_only"}, "advantage": {"estimator": "prime_value"}},
        "prm.on_collapse: outcome_only takes the PRM out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused(name: str) -> None:
    sections, line = REFUSED[name]
    with pytest.raises(InputError) as error:
        check_train_config(config_of(**sections))
    assert str(error.value).startswith(line) and "set " in str(error.value) and "\n" not in str(error.value)


def test_odd_settings_are_warned_of() -> None:
    good = {"rollout": {"prompts_per_step": 16}, "prm": {"health": HEALTH, "on_collapse": "outcome_only"}}
    assert check_train_config(config_of(**good)) == ()
    (late,) = check_train_config(config_of(**good | {"prm": {"health": HEALTH | {"every": 50}}}))
    assert late.startswith("prm.health: no check falls into the 40 steps")
    (small,) = check_train_config(config_of(**good | {"prm": {"health": {"every": 5}}}))
    assert small.startswith("prm.health.margin 0.05: the pair accuracy of 16 prompts has a deviation of 0.08 by chance")


def test_the_plan_counts_the_checks() -> None:
    base, watched = plan_step(config_of()), plan_step(config_of(prm={"health": HEALTH}))
    assert watched.forwards == pytest.approx(base.forwards + 2 * 4 / 5)
    given = plan_step(config_of(prm={"health": HEALTH}, eval={"prm_rows": ["rows.jsonl"]}))
    assert given.forwards == base.forwards and "not counted" in given.passes[-2].why


def test_one_line_when_it_begins_and_one_when_it_ends() -> None:
    alarms = Alarms(config_of(prm={"health": HEALTH, "on_collapse": "outcome_only"}))
    figures = {"engine/logprob_gap_mean": 0.0, "rollout/outcome": 0.5}
    assert alarms.lines(figures, None) == []  # a step without a check
    checked = {"pair_accuracy": 0.25, "frozen_pair_accuracy": 0.5, "alarm": 1.0, "change": 0.0}
    for change, alarm, end in ((0.0, 1.0, None), (1.0, 1.0, "outcome_only)"), (-1.0, 0.0, "the alarm ends")):
        told = checked | {"alarm": alarm, "change": change}
        lines = alarms.lines(figures | {f"prm_health/{name}": value for name, value in told.items()}, None)
        if end is None:
            assert lines == []
        else:
            (line,) = lines
            assert line.startswith("PRM health: pair accuracy 0.250") and line.endswith(end)
