"""N steps equal k steps, a resume, and N - k steps: to the last bit, in metrics, parameters and prompts seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.resume_runs import assert_same, at, outcome, stopped_at, toy, train
from tests.support.runs import differences

LAYOUTS: dict[str, dict[str, Any]] = {"dp2": {}, "pp2": {"pipeline": 2}, "tp2": {"tensor": 2}}
DRAWN = {"draw": "teaching", "teaching": {"rest_steps": 1}}
"""Of dp2: prompts by what they teach."""


@pytest.fixture(scope="module", params=LAYOUTS)
def straight(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Four steps in one go, saved after each: (settings, folder, outcome)."""
    folder = tmp_path_factory.mktemp(request.param)
    config = toy(folder, parallel=LAYOUTS[request.param], data=DRAWN if request.param == "dp2" else {})
    assert train(config, 2) == {0}
    result = outcome(folder / "straight")
    assert [row["step"] for row in result["metrics"]] == [0, 1, 2, 3, 4]
    assert all(row["rollout/carried_in"] > 0 for row in result["metrics"][2:]), "no surplus was carried over"
    assert result["metrics"][-1]["policy/grad_norm"] > 0 and result["metrics"][-1]["prm/grad_norm"] > 0
    return config, folder, result


PATIENT = {
    "rollout": {"start_timeout_s": 1200.0, "alive_timeout_s": 600.0, "generate_timeout_s": 7200.0, "transport": "disk"},
    "run": {"stall_timeout_s": 3600.0},
    "verify": {"timeout_s": 50.0},
    "parallel": {"timeout_s": 120.0},
    "checkpoint": {"grace_s": 60.0},
}
"""Every limit of time changed: what a run that died of one is resumed with."""


@pytest.mark.parametrize(("step", "sections"), [(1, PATIENT), (3, {})], ids=["1-longer-limits", "3"])
def test_resume_changes_no_bit(straight: Any, step: int, sections: dict[str, Any], tmp_path: Path) -> None:
    config, folder, expected = straight
    stopped_at(folder / "straight", step, tmp_path / "out")
    assert train(at(config, tmp_path / "out", **sections), 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def test_another_layout_goes_on(straight: Any, tmp_path: Path) -> None:
    """Saved on two ranks, resumed on one: the next update's figures agree to 1e-5."""
    config, folder, expected = straight
    stopped_at(folder / "straight", 3, tmp_path / "out")
    other = at(config, tmp_path / "out", parallel={"tensor": 1, "pipeline": 1})
    assert train(other, 1, resume=str(tmp_path / "out" / "checkpoints" / "step-00000003")) == {0}
    resumed = outcome(tmp_path / "out")
    worst = differences(expected["metrics"], resumed["metrics"], ())
    assert max(worst.values()) <= 1e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]
    for key, tensor in expected["models"].items():
        assert (tensor - resumed["models"][key]).abs().max() <= 1e-5, key


@pytest.mark.parametrize(
    "sections",
    [
        {"checkpoint": {"asynchronous": True}},
        {"checkpoint": {"asynchronous": True}, "parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True}},
        {"parallel": {"distributed_optimizer": False}, "models": {"dtype": "bfloat16"}},
    ],
    ids=["background", "background-overlap", "plain-optimizer-bf16"],
)
def test_other_ways_of_saving(sections: dict[str, Any], tmp_path: Path) -> None:
    """A save in the background holds the moment at which it was asked for, whatever the next step changes."""
    config = toy(tmp_path, **sections)
    assert train(config, 2) == {0}
    expected = outcome(tmp_path / "straight")
    names = sorted(path.name for path in (tmp_path / "straight" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    stopped_at(tmp_path / "straight", 2, tmp_path / "out")
    assert train(at(config, tmp_path / "out"), 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)
