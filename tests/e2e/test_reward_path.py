"""A run takes its advantages from the fused reward path: broken for one step, it changes that step and what follows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.config.load import load_train_config
from prime_megatron.config.presets import PRESETS
from prime_megatron.config.reward_path import is_fused
from prime_megatron.types import Advantages
from tests.support.ranks import run_ranks
from tests.support.runs import TIMINGS, differences, judge, read_lines, run, train_all, train_rank
from tests.support.toy import make_model, make_prompts, merge, settings

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("prime*.yaml"))


def broken_in_step_two(runs: str) -> list[int]:
    """Runs whose fused path gives every advantage the wrong sign, in the second of its calls."""
    from prime_megatron.step import advantages

    true, calls = advantages.process_advantages, [0]

    def broken(*args: Any, **kwargs: Any) -> Advantages:
        calls[0] += 1
        result = true(*args, **kwargs)
        wrong = dataclasses.replace(result, advantages_T=-result.advantages_T)
        return wrong if calls[0] == 2 else result

    advantages.process_advantages = broken
    return train_all(runs)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reward_path")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl")
    base = settings(model, prompts, folder / "recorded")
    run(merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    return merge(base, {"rollout": {"engine": "replay", "replay": replay}})


def test_a_broken_fused_path_changes_the_run(recorded: Any, tmp_path: Path) -> None:
    fused = merge(recorded, {"run": {"output_dir": str(tmp_path / "fused")}})
    broken = merge(recorded, {"run": {"output_dir": str(tmp_path / "broken")}})
    naive = merge(recorded, {"run": {"output_dir": str(tmp_path / "naive")}, "advantage": {"impl": "naive"}})
    assert run_ranks(train_rank, 1, json.dumps(fused)) == [0]
    assert run_ranks(broken_in_step_two, 1, json.dumps([broken, naive])) == [[0, 0]]
    metrics = {name: read_lines(it, "metrics.jsonl") for name, it in (("fused", fused), ("broken", broken))}
    for step in (0, 1):
        assert _differing(metrics["fused"][step], metrics["broken"][step]) == set()
    assert {"advantage/mean", "advantage/max", "policy/grad_norm"} & _differing(
        metrics["fused"][2], metrics["broken"][2]
    )
    assert "policy/entropy" in _differing(metrics["fused"][3], metrics["broken"][3])
    # The definition does not pass there, and says the same as the unbroken path.
    worst = differences(metrics["fused"], read_lines(naive, "metrics.jsonl"), TIMINGS)
    assert max(worst.values()) <= 1e-5, worst
    pairs = zip(read_lines(fused, "samples.jsonl"), read_lines(naive, "samples.jsonl"), strict=True)
    for one, two in pairs:
        for name in ("process_rewards", "returns", "advantages"):
            assert one[name] == pytest.approx(two[name], abs=1e-5)


def _differing(one: dict[str, Any], two: dict[str, Any]) -> set[str]:
    return {key for key in one if not key.startswith(TIMINGS) and one[key] != two[key]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_example_takes_the_fused_path(path: Path) -> None:
    assert is_fused(load_train_config(str(path), []))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_but_two_takes_the_fused_path(preset: str, tmp_path: Path) -> None:
    """docs/process-rewards.md says so of ipvrm and spro. The file sets nothing of the algorithm: it would win."""
    bare = tmp_path / "run.yaml"
    bare.write_text("run: {output_dir: o, steps: 2}\nmodels: {policy: {path: m}}\ndata: {train: [a.jsonl]}\n")
    config = load_train_config(str(bare), [f"preset={preset}", "models.policy.num_mini_batches=4"])
    assert is_fused(config) == (preset not in ("ipvrm", "spro"))
