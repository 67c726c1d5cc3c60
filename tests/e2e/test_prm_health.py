"""A PRM that is spoilt on purpose is noticed, and what is done about it holds; one that is not is left in peace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.health_runs import NEVER, watch_in_turn, watched
from tests.support.ranks import run_ranks
from tests.support.resume_runs import assert_same, at, outcome, said, stopped_at
from tests.support.runs import check_same, read_lines
from tests.support.toy import make_model, merge

STEPS, SPOILT_FROM, EVERY = 16, 7, 3
ACTIONS = ("freeze", "outcome_only")
SAVED = 13


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name: (folder of a run, digests of its PRM), all on the same rollouts; "calm" and "plain" (no PRM) are not
    spoilt, nor is "still", whose PRM is no copy of its reference and learns too slowly for its weights to change. The
    one of outcome_only is saved on its way."""
    folder: Path = tmp_path_factory.mktemp("watched")
    base = watched(folder, STEPS)
    asked = {name: (merge(base, {"prm": {"on_collapse": name}}), SPOILT_FROM) for name in ACTIONS}
    asked["calm"] = (base, NEVER)
    asked["plain"] = (merge(base, {"advantage": {"process_weight": 0.0}, "prm": {"health": {"every": 0}}}), NEVER)
    other = {"path": make_model(folder / "other", hidden=32, layers=2, seed=1), "optimizer": {"lr": 1e-30}}
    still = {"run": {"steps": 6}, "models": {"prm": other, "reference": base["models"]["policy"]["path"]}}
    asked["still"] = (merge(base, still), NEVER)
    saved = {"checkpoint": {"every": SAVED, "export_final": True}}
    asked["outcome_only"] = (merge(asked["outcome_only"][0], saved), SPOILT_FROM)
    rows = [(at(row, folder / name), spoilt_from, None) for name, (row, spoilt_from) in asked.items()]
    (stores := folder / "stores").mkdir()
    (digests,) = run_ranks(watch_in_turn, 1, json.dumps(rows), str(stores), timeout_s=280.0)
    return {name: (row, done) for name, (row, _, _), done in zip(asked, rows, digests, strict=True)}


def metrics_of(runs: Any, name: str) -> list[dict[str, Any]]:
    """A line a step, step 0 left out."""
    return read_lines(runs[name][0], "metrics.jsonl")[1:]


def begun(runs: Any, name: str) -> int:
    """The step whose check began the alarm."""
    (step,) = [row["step"] for row in metrics_of(runs, name) if row.get("prm_health/change") == 1.0]
    return step


def test_a_prm_that_learns_raises_no_alarm(runs: Any) -> None:
    metrics = metrics_of(runs, "calm")
    checks = [row for row in metrics if "prm_health/pair_accuracy" in row]
    assert [row["step"] for row in checks] == list(range(EVERY, STEPS + 1, EVERY))
    assert all(row["prm_health/alarm"] == 0.0 for row in metrics)
    assert all(row["prm_health/frozen_pair_accuracy"] == 0.5 for row in checks)  # a copy of its own reference
    assert checks[-1]["prm_health/pair_accuracy"] > 0.75 and checks[-1]["prm_health/auc"] > 0.75
    assert checks[-1]["prm_health/reward_right"] > checks[-1]["prm_health/reward_wrong"]


def test_the_prm_does_not_learn_from_what_is_held_out(runs: Any) -> None:
    metrics, digests = metrics_of(runs, "calm"), runs["calm"][1]
    assert len(set(digests)) == STEPS  # every step but the first one changes it
    assert [row["step"] for row in metrics if "prm/loss" not in row] == [1]
    assert all(row["policy/grad_norm"] > 0 for row in metrics)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_alarm_comes_within_three_checks(name: str, runs: Any) -> None:
    checks_spoilt = (begun(runs, name) - SPOILT_FROM) // EVERY + 1
    assert checks_spoilt <= 3
    told = [line for line in said(Path(runs[name][0]["run"]["output_dir"])).split("\n") if "PRM health" in line]
    assert len(told) == 1 and f" warning: step {begun(runs, name)}: PRM health" in told[0]


def test_a_frozen_prm_keeps_its_bytes(runs: Any) -> None:
    since, digests = begun(runs, "freeze"), runs["freeze"][1]
    assert since < STEPS and len(set(digests[since - 1 :])) == 1
    learning = runs["outcome_only"][1]
    assert digests[:since] == learning[:since] and len(set(learning)) == STEPS


def test_kept_scores_are_a_frozen_copys(runs: Any) -> None:
    """A PRM whose weights stay gets the figures of its frozen copy, and once frozen the same at every check."""
    checks = [row for row in metrics_of(runs, "still") if "prm_health/auc" in row]
    assert [row["step"] for row in checks] == [3, 6]
    for figure in ("pair_accuracy", "auc", "calibration_error", "brier"):
        assert all(row[f"prm_health/{figure}"] == row[f"prm_health/frozen_{figure}"] for row in checks), figure
    assert checks[0]["prm_health/frozen_pair_accuracy"] != 0.5
    checks = [row for row in metrics_of(runs, "freeze") if "prm_health/auc" in row]
    later = [row for row in checks if row["step"] >= begun(runs, "freeze")]
    figures = ("pair_accuracy", "auc", "calibration_error", "brier", "delimiter_share", "length_correlation")
    assert len(later) > 1 and len({tuple(row[f"prm_health/{name}"] for name in figures) for row in later}) == 1


def advantages_of(runs: Any, name: str, step: int) -> list[Any]:
    rows = read_lines(runs[name][0], "samples.jsonl")
    return [(row["token_ids"], row["returns"], row["advantages"]) for row in rows if row["step"] == step]


def test_outcome_only_is_process_weight_0(runs: Any) -> None:
    """To the last bit, from the step after the alarm on; the PRM goes on learning."""
    since = begun(runs, "outcome_only")
    for step in range(1, STEPS + 1):
        same = advantages_of(runs, "outcome_only", step) == advantages_of(runs, "plain", step)
        assert same == (step > since or step == 1), step  # in step 1 the PRM equals its reference and rewards nothing


def test_a_resume_within_an_alarm_changes_no_bit(runs: Any, tmp_path: Path) -> None:
    row, straight = runs["outcome_only"][0], Path(runs["outcome_only"][0]["run"]["output_dir"])
    assert begun(runs, "outcome_only") < SAVED < STEPS
    stopped_at(straight, SAVED, tmp_path / "out")
    resumed = [(at(row, tmp_path / "out"), SPOILT_FROM, "auto")]
    run_ranks(watch_in_turn, 1, json.dumps(resumed), str(tmp_path), timeout_s=200.0)
    assert_same(outcome(tmp_path / "out"), outcome(straight))


LAYOUTS: dict[str, dict[str, Any]] = {"dp2": {}, "pp2": {"pipeline": 2}}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Metrics of a short run that is spoilt as soon as it learns, on one process and in layouts of two."""
    folder: Path = tmp_path_factory.mktemp("layouts")
    quick = {
        "prm": {"health": {"every": 1, "steps": 1, "margin": 0.0}, "on_collapse": "outcome_only"},
        "models": {"prm": {"num_mini_batches": 1, "optimizer": {"lr": 1e-3}}},
        "rollout": {"prompts_per_step": 5},
    }
    base, found = watched(folder, 5, prompts=5, **quick), {}
    for size, parallels in ((1, {"one": {}}), (2, LAYOUTS)):
        (stores := folder / f"stores-{size}").mkdir()
        runs = {name: at(base, folder / name, parallel=parallel) for name, parallel in parallels.items()}
        rows = [(row, 2, None) for row in runs.values()]
        run_ranks(watch_in_turn, size, json.dumps(rows), str(stores), timeout_s=280.0)
        found |= {name: read_lines(row, "metrics.jsonl") for name, row in runs.items()}
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_check_and_decide_alike(name: str, layouts: Any) -> None:
    assert layouts["one"][-1]["prm_health/alarm"] == 1.0 and "prm_health/auc" in layouts["one"][-1]
    check_same(layouts["one"], layouts[name])
