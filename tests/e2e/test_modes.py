"""Every update order, PRM loss, granularity, reference and estimator makes steps end to end, and means what it says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.prm_kinds import RLSD
from tests.support.prm_runs import make_labelled
from tests.support.ranks import run_ranks
from tests.support.runs import judge, read_lines, run, train_all
from tests.support.suites import make_suite
from tests.support.toy import make_model, make_prompts, make_sft, merge, settings
from tools.reference import all_metrics

MODES: dict[str, dict[str, Any]] = {
    "after": {"prm": {"update": "after"}},
    "before": {"prm": {"update": "before"}},
    "reverse": {"prm": {"update": "reverse"}},
    "none": {"prm": {"update": "none"}},
    "dpo": {"prm": {"update": "reverse", "loss": "dpo"}},
    "bon_acc": {"prm": {"update": "reverse", "loss": "bon_acc"}},
    "bon_rm": {"prm": {"update": "reverse", "loss": "bon_rm"}},
    "step": {"prm": {"granularity": "step", "step_delimiter": "e"}},
    "whole": {"prm": {"granularity": "whole"}},
    "policy-reference": {"prm": {"reference": "policy"}},
    "smoothed": {"prm": {"smoothing_lambda": 0.5, "use_gt": True, "norm": "none"}},
    "code-form": {"advantage": {"leave_one_out": "code", "gamma_process": 0.9, "gamma_outcome": 0.95}},
    "grpo": {"advantage": {"estimator": "grpo"}},
    "reinforce": {"advantage": {"estimator": "reinforce", "whiten": False}},
    "reinforce++": {"advantage": {"estimator": "reinforce++"}},
    "prime_value": {"advantage": {"estimator": "prime_value"}},
    "gae": {"advantage": {"estimator": "gae", "gae_lambda": 0.95}},
    "outcome-only": {"advantage": {"process_weight": 0.0}},
    "kl-in-reward": {"policy": {"kl_place": "reward", "kl_coef": 0.1, "kl_estimator": "k1"}},
    "kl-in-loss": {"policy": {"kl_place": "loss", "kl_coef": 0.1, "entropy_coef": 0.01}},
    "importance": {"policy": {"importance_cap": 2.0}},
    "gspo": {
        "policy": {"objective": "gspo", "mask_truncated": True},
        "advantage": {"overlong_buffer": 5},
        "models": {"policy": {"num_mini_batches": 2}},
    },
    "rlsd": RLSD,
    "health": {"prm": {"health": {"every": 1}}},
    "mini-batches": {"models": {"policy": {"num_mini_batches": 4}, "prm": {"num_mini_batches": 2}}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict], list[dict]]]:
    """Metrics and samples of two steps of every mode, on the same judged rollouts but for "generated", which makes its
    own; "memory": the memory figures of one of them."""
    folder: Path = tmp_path_factory.mktemp("modes")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl")
    small = make_model(folder / "small", hidden=32, layers=2, seed=1)
    base = settings(model, prompts, folder / "recorded", run={"steps": 2})
    run(merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    base = merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    labelled = {"eval": {"prm_rows": [make_labelled(folder / "labelled.jsonl")], "prm_every": 1}}
    evaluated = merge({"data": {"eval": [prompts]}, "eval": {"samples_per_prompt": 2, "max_prompts": 4}}, labelled)
    evaluated = merge(evaluated, {"eval": make_suite(folder / "suite")})
    # Every answer is graded in a process.
    graded = {"verify": {"custom": {"math": "examples.custom_reward.rewards:wanted_characters"}}}
    generated = {"rollout": {"engine": "embedded", "replay": None}, **evaluated, **graded}
    generated["parallel"] = {"offload": "phases"}
    generated = merge(generated, {"data": {"draw": "teaching"}, "verify": {"action_form": True}})
    modes = {
        **MODES,
        "policy-reference": MODES["policy-reference"] | labelled,
        "small-prm": {"models": {"prm": {"path": small}}},
        "generated": generated,
    }
    runs = {name: merge(merge(base, {"run": {"output_dir": str(folder / name)}}), mode) for name, mode in modes.items()}
    (codes,) = run_ranks(train_all, 1, json.dumps(list(runs.values())), timeout_s=280.0)
    assert codes == [0] * len(runs)
    found = {
        name: (read_lines(done, "metrics.jsonl"), read_lines(done, "samples.jsonl")) for name, done in runs.items()
    }
    return found | {"memory": (read_lines(runs["generated"], "memory.jsonl"), [])}


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of a supervised run."""
    folder: Path = tmp_path_factory.mktemp("supervised")
    config = {
        "run": {"output_dir": str(folder / "out"), "steps": 2},
        "model": make_model(folder / "model"),
        "dtype": "float32",
        "batch_size": 2,
        "data": {"train": [make_sft(folder / "rows.jsonl", count=3)], "held_out_share": 0.4},  # two rows in each step
        "optimizer": {"lr": 3e-3},
        "log": {"tensorboard": False},
    }
    assert run_ranks(sft_rank, 1, json.dumps(config)) == [0]
    return read_lines(config, "metrics.jsonl")


def sft_rank(settings: str) -> int:
    from prime_megatron.config import SftConfig
    from prime_megatron.sft import train_sft

    return int(train_sft(SftConfig.model_validate_json(settings), resume=None, overwrite=False))


def test_supervised_learning_lowers_its_loss(supervised: list[dict[str, Any]]) -> None:
    _, first, second = supervised
    assert math.isfinite(first["sft/loss"]) and second["sft/loss"] < first["sft/loss"]


def test_every_metric_has_a_row_and_every_row_is_fed(results: Any, supervised: list[dict[str, Any]]) -> None:
    """Of all these modes together; <word> in a row's name stands for any word."""
    logged = {key for row in supervised for key in row} | {
        key for metrics, _ in results.values() for row in metrics for key in row
    }
    logged |= {key for row in results["memory"][0] for key in row}
    logged.remove("step")
    patterns = {row.name: re.compile(re.sub(r"<\w+>", r"[\\w+]+", row.name)) for row in all_metrics()}
    unnamed = {key for key in logged if not any(pattern.fullmatch(key) for pattern in patterns.values())}
    unfed = {name for name, pattern in patterns.items() if not any(pattern.fullmatch(key) for key in logged)}
    assert not unnamed, f"metrics without a row: {sorted(unnamed)}"
    assert not unfed, f"rows that nothing feeds: {sorted(unfed)}"


@pytest.mark.parametrize("name", [*MODES, "small-prm"])
def test_steps_are_finite_and_learn(name: str, results: Any) -> None:
    metrics, samples = results[name]
    assert [row["step"] for row in metrics] == [0, 1, 2]
    for row in metrics[1:]:
        assert all(math.isfinite(value) for key, value in row.items() if isinstance(value, float)), row
        assert row["policy/grad_norm"] > 0.0 and row["policy/skipped_updates"] == 0
    assert len(samples) == 2 * 5 * 4
    for row in samples:
        assert len(row["process_rewards"]) == len(row["advantages"]) == len(row["token_ids"])


def rewards(results: Any, name: str) -> list[list[float]]:
    """Process rewards of the second step (in the first the PRM equals its reference)."""
    return [row["process_rewards"] for row in results[name][1] if row["step"] == 2]


def test_the_prm_learns_the_mean_cross_entropy(results: Any) -> None:
    """What it trains on, scaled by the global count, is the mean that the statistics make of the same scores."""
    for row in results["after"][0][1:]:
        assert row["prm/loss"] == pytest.approx(row["prm/ce"], rel=1e-5)


def first_step(results: Any, name: str) -> tuple[dict[str, Any], dict[tuple[str, int], list[dict[str, Any]]]]:
    """Metrics of the first step, and its samples by prompt."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results[name][1]:
        if row["step"] == 1:
            groups.setdefault((row["uid"], row["draw"]), []).append(row)
    return results[name][0][1], groups


@pytest.mark.parametrize("name", ["after", "dpo", "bon_acc", "bon_rm"])
def test_the_first_loss_of_the_prm_is_known(name: str, results: Any) -> None:
    """It equals its reference, so every Q is 0: log 2 a response, for bon times n F^(n-1) with n = 4."""
    metrics, groups = first_step(results, name)
    weights = []
    for rows in groups.values():
        outcomes = [row["outcome"] for row in rows]
        shares = [sum(other <= own for other in outcomes) / len(outcomes) for own in outcomes]
        weights += [{"bon_acc": 4 * share**3, "bon_rm": 4.0}.get(name, 1.0) for share in shares]
    assert metrics["prm/loss"] == pytest.approx(math.log(2) * sum(weights) / len(weights), rel=1e-5)


def test_the_first_loss_of_the_critic_is_known(results: Any) -> None:
    """Its head starts at zero, so that it is half the mean square of the returns."""
    metrics, groups = first_step(results, "gae")
    squares = [value**2 for rows in groups.values() for row in rows for value in row["returns"]]
    assert metrics["critic/loss"] == pytest.approx(sum(squares) / len(squares) / 2, rel=1e-5)


def test_importance_weights_are_reported(results: Any) -> None:
    """The recording's policy is the one that is trained, so that the first step's weights are 1 and nothing is cut."""
    first, second = results["importance"][0][1:]
    assert first["policy/importance_weight"] == pytest.approx(1.0, abs=1e-4)
    assert first["policy/importance_capped"] == 0.0
    assert second["policy/importance_weight"] != first["policy/importance_weight"]


def test_frozen_prm_never_moves(results: Any) -> None:
    metrics, _ = results["none"]
    assert all("prm/grad_norm" not in row for row in metrics)
    assert all(value == 0.0 for row in rewards(results, "none") for value in row)


def test_before_scores_with_the_new_weights(results: Any) -> None:
    """In the first step a PRM that scores before its update equals its reference; one that scores after does not."""
    first = {name: [row["process_rewards"] for row in results[name][1] if row["step"] == 1] for name in MODES}
    for name in ("after", "reverse"):
        assert all(value == 0.0 for row in first[name] for value in row)
    assert any(value != 0.0 for row in first["before"] for value in row)


def test_after_and_reverse_differ_by_a_forward_only(results: Any) -> None:
    """With one mini-batch and ce, both score with the weights before the update and make the same step."""
    for one, two in zip(results["after"][0][1:], results["reverse"][0][1:], strict=True):
        assert one["policy/grad_norm"] == pytest.approx(two["policy/grad_norm"], rel=1e-5)
        assert one["prm/grad_norm"] == pytest.approx(two["prm/grad_norm"], rel=1e-5)


def test_whole_is_the_sum_on_the_last_token(results: Any) -> None:
    token, whole = rewards(results, "after"), rewards(results, "whole")
    ratio = {round(sum(t) / w[-1], 3) for t, w in zip(token, whole, strict=True) if abs(w[-1]) > 1e-3}
    assert all(value == 0.0 for row in whole for value in row[:-1])
    assert len(ratio) == 1  # one common scale: batch_norm divides by different maxima


def test_steps_end_where_the_delimiter_stands(results: Any) -> None:
    for row in (row for row in results["step"][1] if row["step"] == 2):
        text = row["response"]
        if len(text) == len(row["token_ids"]):  # a special token shows nothing
            inside = zip(text[:-1], row["process_rewards"], strict=False)
            inner = [value for character, value in inside if character != "e"]
            assert all(value == 0.0 for value in inner)


def test_outcome_only_has_no_prm(results: Any) -> None:
    metrics, _ = results["outcome-only"]
    assert not any(key.startswith("prm/") for row in metrics for key in row)


def test_estimators_differ(results: Any) -> None:
    names = ("after", "grpo", "reinforce", "reinforce++", "prime_value", "gae", "code-form", "kl-in-reward")
    norms = {name: results[name][0][2]["policy/grad_norm"] for name in names}
    assert len(set(norms.values())) == len(names), norms
