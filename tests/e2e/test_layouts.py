"""Nothing changes a result but the seed and the algorithm: three steps on the same rollouts, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import check_same, judge, run
from tests.support.toy import make_model, make_prompts, merge, settings

LAYOUTS = {
    "dp2": (2, {}),
    "dp2-plain-optimizer": (2, {"distributed_optimizer": False}),
    "dp2-overlap": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "pp2": (2, {"pipeline": 2}),
    "tp2": (2, {"tensor": 2}),
    "tp2-sp": (2, {"tensor": 2, "sequence": True}),
    "cp2": (2, {"context": 2}),
    "pp2-vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2}),
    "dp2-pp2-uneven": (4, {"pipeline": 2, "pipeline_layers": [3, 1]}),
}
PACKINGS: dict[str, dict[str, Any]] = {
    "one-by-one": {"max_sequences": 1},
    "four-padded": {"max_sequences": 4, "padded": True},
    "by-tokens": {"max_tokens": 40},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings that replay the rollouts of a run on one process, and that run's metrics."""
    folder: Path = tmp_path_factory.mktemp("layouts")
    model = make_model(folder / "model")
    prompts = make_prompts(folder / "prompts.jsonl")
    base = settings(
        model,
        prompts,
        folder / "recorded",
        models={"policy": {"num_mini_batches": 2}},
        rollout={"sampling": {"temperature": 0.9}},
        policy={"kl_place": "loss", "kl_coef": 0.01, "entropy_coef": 0.01},
    )
    run(merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    base = merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    metrics = run(merge(base, {"run": {"output_dir": str(folder / "replayed")}}))
    assert len(metrics) == 4
    assert metrics[-1]["policy/grad_norm"] > 0.0 and metrics[-1]["prm/grad_norm"] > 0.0
    return base, metrics


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_changes_nothing(name: str, recorded: Any, tmp_path: Path) -> None:
    base, expected = recorded
    world_size, parallel = LAYOUTS[name]
    metrics = run(merge(base, {"run": {"output_dir": str(tmp_path / "out")}, "parallel": parallel}), world_size)
    check_same(expected, metrics)


@pytest.mark.parametrize("name", PACKINGS)
def test_packing_changes_nothing(name: str, recorded: Any, tmp_path: Path) -> None:
    base, expected = recorded
    metrics = run(merge(base, {"run": {"output_dir": str(tmp_path / "out")}, "packing": PACKINGS[name]}))
    check_same(expected, metrics)


# Fewer prompts in a mini-batch than data-parallel ranks: some have nothing to do and take part all the same.
IDLE = {
    "dp2": (2, {}),
    "dp2-cp2": (4, {"context": 2}),
    "dp2-pp2": (4, {"pipeline": 2}),
    "dp4": (4, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
}


@pytest.fixture(scope="module")
def one_prompt_each(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same rollouts with one prompt a mini-batch and a critic, on one process."""
    # Adam's first updates have the size of the learning rate whatever the gradient's, so every one of them magnifies
    # the rounding in which layouts differ, and batch_norm does it again: many updates, small steps, plain rewards.
    single = {"num_mini_batches": 5, "optimizer": {"lr": 3e-5}}
    over = {
        "run": {"output_dir": str(tmp_path_factory.mktemp("single") / "out"), "steps": 2},
        "models": {"policy": single, "prm": single, "critic": single},
        "advantage": {"estimator": "gae"},
        "prm": {"norm": "none"},
    }
    base = merge(recorded[0], over)
    return base, run(base)


@pytest.mark.parametrize("name", IDLE)
def test_ranks_without_a_prompt_change_nothing(name: str, one_prompt_each: Any, tmp_path: Path) -> None:
    base, expected = one_prompt_each
    world_size, parallel = IDLE[name]
    metrics = run(merge(base, {"run": {"output_dir": str(tmp_path / "out")}, "parallel": parallel}), world_size)
    check_same(expected, metrics)
