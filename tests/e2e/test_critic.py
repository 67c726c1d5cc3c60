"""PPO with process rewards (paper, appendix B.3): the critic learns alike in every layout; absent, it is free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_ranks
from tests.support.runs import check_same, judge, read_lines, run, train_all
from tests.support.toy import make_model, make_prompts, merge, settings

GAE = {
    "advantage": {"estimator": "gae", "gamma_process": 0.98, "gamma_outcome": 0.98, "gae_lambda": 0.9},
    # Adam makes whole steps of gradients that are rounding alone (key biases), and the norm would magnify them.
    "prm": {"norm": "none"},
    "models": {"critic": {"num_mini_batches": 2, "optimizer": {"lr": 1e-4}}},
}
LAYOUTS = {
    "dp2": (2, {}),
    "pp2": (2, {"pipeline": 2}),
    "tp2": (2, {"tensor": 2}),
    "tp2-sp": (2, {"tensor": 2, "sequence": True}),
    "cp2": (2, {"context": 2}),
    "pp2-vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings that replay judged rollouts with a critic, and that run's metrics on one process."""
    folder: Path = tmp_path_factory.mktemp("critic")
    model = make_model(folder / "model")
    prompts = make_prompts(folder / "prompts.jsonl")
    base = merge(settings(model, prompts, folder / "recorded"), GAE)
    run(merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    base = merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    return base, run(merge(base, {"run": {"output_dir": str(folder / "replayed")}}))


def test_critic_learns_and_is_reported(recorded: Any) -> None:
    _, metrics = recorded
    for row in metrics[1:]:
        assert row["critic/grad_norm"] > 0.0 and row["critic/skipped_updates"] == 0
        assert row["critic/explained_variance"] <= 1.0
    assert metrics[1]["critic/value_mean"] != metrics[3]["critic/value_mean"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_changes_nothing(name: str, recorded: Any, tmp_path: Path) -> None:
    base, expected = recorded
    world_size, parallel = LAYOUTS[name]
    metrics = run(merge(base, {"run": {"output_dir": str(tmp_path / "out")}, "parallel": parallel}), world_size)
    check_same(expected, metrics)


def test_loss_falls_on_the_same_step(recorded: Any, tmp_path: Path) -> None:
    """One step's rollouts again and again, frozen PRM and slow policy: the targets stay, so the critic fits them."""
    base, _ = recorded
    first = Path(base["rollout"]["replay"]).read_text().splitlines()[0]
    row = json.loads(first)
    replay = tmp_path / "same.jsonl"
    replay.write_text("".join(json.dumps(row | {"step": step}) + "\n" for step in range(1, 13)))
    over = {
        "run": {"output_dir": str(tmp_path / "out"), "steps": 12},
        "rollout": {"replay": str(replay)},
        "models": {"policy": {"optimizer": {"lr": 1e-12}}, "critic": {"optimizer": {"lr": 3e-3}}},
        "advantage": {"process_weight": 0.0, "gae_lambda": 1.0, "value_clip": None},
    }
    metrics = run(merge(base, over))
    assert metrics[12]["critic/loss"] < 0.5 * metrics[1]["critic/loss"]
    assert metrics[12]["critic/explained_variance"] > metrics[1]["critic/explained_variance"]
    assert metrics[12]["critic/error"] < metrics[1]["critic/error"]


def test_a_tight_clip_stops_the_values(recorded: Any, tmp_path: Path) -> None:
    base, metrics = recorded
    over = {"run": {"output_dir": str(tmp_path / "out")}, "advantage": {"value_clip": 1e-6}}
    clipped = run(merge(base, over))
    assert max(row["critic/clipped"] for row in clipped[1:]) > max(row["critic/clipped"] for row in metrics[1:])


def test_no_critic_without_gae(recorded: Any, tmp_path: Path) -> None:
    base, _ = recorded
    over = {"run": {"output_dir": str(tmp_path / "out"), "steps": 1}, "advantage": {"estimator": "reinforce"}}
    (codes,) = run_ranks(train_all, 1, json.dumps([merge(base, over)]))
    assert codes == [0]
    rows = read_lines(merge(base, over), "metrics.jsonl")
    assert not any(key.startswith(("critic/", "time/critic")) for row in rows for key in row)
