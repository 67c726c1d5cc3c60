"""Runs that draw prompts by what they teach: the same prompts in every layout, and what is counted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import read_lines, run
from tests.support.toy import make_model, make_prompts, settings

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {"one": (1, {}), "dp2": (2, {}), "pp2": (2, {"pipeline": 2})}
TOLD = ("data/known_prompts", "data/past_accuracy", "data/resting_prompts", "data/learned_prompts",
        "data/learned_responses", "rollout/action_form")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Metrics and samples of four steps in each layout."""
    folder: Path = tmp_path_factory.mktemp("teaching")
    model = make_model(folder / "model", hidden=32, layers=2)
    prompts = make_prompts(folder / "prompts.jsonl", 12)
    found = {}
    for name, (world, parallel) in LAYOUTS.items():
        config = settings(
            model,
            prompts,
            folder / name,
            run={"steps": 4},
            data={"draw": "teaching", "teaching": {"rest_steps": 1}},
            models={"policy": {"optimizer": {"lr": 1e-12}}},  # so that rounding never shows in a response
            rollout={"samples_per_prompt": 2, "oversample": 1.2},
            verify={"custom": {"math": "examples.custom_reward.rewards:wanted_characters"}, "action_form": True},
            advantage={"process_weight": 0.0, "estimator": "reinforce"},
            parallel=parallel,
        )
        found[name] = (run(config, world), read_lines(config, "samples.jsonl"))
    return found


def test_layouts_see_the_same_prompts(runs: Any) -> None:
    metrics, samples = runs["one"]
    seen = [(row["step"], row["uid"], row["token_ids"], row["outcome"]) for row in samples]
    assert len(seen) == 4 * 5 * 2
    for name in ("dp2", "pp2"):
        others = [(row["step"], row["uid"], row["token_ids"], row["outcome"]) for row in runs[name][1]]
        assert sorted(others) == sorted(seen), name
        for one, other in zip(metrics[1:], runs[name][0][1:], strict=True):
            assert {key: one[key] for key in TOLD} == {key: other[key] for key in TOLD}, name


def test_figures_are_those_of_the_samples(runs: Any) -> None:
    metrics, samples = runs["one"]
    rows = [row["uid"].split("-")[1] for row in samples]
    assert len(set(rows)) < len({row["uid"] for row in samples}), "some row came twice"
    prompts: set[Any] = set()
    responses: set[Any] = set()
    for step in (1, 2, 3, 4):
        mine = [row for row in samples if row["step"] == step]
        prompts |= {row["prompt"] for row in mine}
        responses |= {(row["prompt"], tuple(row["token_ids"])) for row in mine}
        assert metrics[step]["data/learned_prompts"] == len(prompts)
        assert metrics[step]["data/learned_responses"] == len(responses)
        assert 0.0 <= metrics[step]["data/past_accuracy"] <= 1.0
        assert metrics[step]["rollout/action_form"] == 0.0
    assert metrics[4]["data/known_prompts"] <= 12
