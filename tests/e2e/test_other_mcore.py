"""The two tested releases of megatron-core in one test: a checkpoint of each goes on under the other, in its own layout
and in another one, and the quick start's figures are the same.

Run by `make test-other-mcore`, which makes the other environment and names its interpreter in OTHER_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.mcore.versions import TESTED
from tests.support.release_runs import ROOT, plain_environment, run_with
from tests.support.resume_runs import at, outcome, stopped_at, toy
from tests.support.runs import TIMINGS, TOLERANCE, differences

pytestmark = [pytest.mark.other_mcore, pytest.mark.timeout(900)]

OTHER = os.environ.get("OTHER_PYTHON", "")
SIDES = {"this": sys.executable, "other": OTHER}
BOUND = 1e-6
SAVED = 3
"""The step that is saved under one release and continued under the other."""
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {"as saved": (2, {}), "tensor 2": (2, {"tensor": 2})}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Outcomes by side and what was run: "straight", four steps in one go on two ranks; and by layout, the fourth step
    of that side from the other side's checkpoint of the third."""
    folder = tmp_path_factory.mktemp("releases")
    base = toy(folder)
    found = {}
    for side, python in SIDES.items():
        release = run_with(python, [(at(base, folder / side), 2, None)], folder / "jobs.json")
        assert release in TESTED
        found[release] = side
    assert len(found) == 2, f"both interpreters hold {list(found)[0]}"
    outputs = {(side, "straight"): folder / side for side in SIDES}
    for side, python in SIDES.items():
        (origin,) = SIDES.keys() - {side}
        jobs: list[Any] = []
        for name, (world_size, parallel) in LAYOUTS.items():
            output = folder / f"{side} {name}"
            stopped_at(folder / origin, SAVED, output)
            checkpoint = output / "checkpoints" / f"step-{SAVED:08d}"
            jobs.append((at(base, output, parallel=parallel), world_size, str(checkpoint)))
            outputs[side, name] = output
        run_with(python, jobs, folder / "jobs.json")
    return {key: outcome(output) for key, output in outputs.items()}


def check_within(bound: float, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Every metric of every step and every parameter."""
    worst = differences(expected["metrics"], found["metrics"], ())
    assert max(worst.values()) <= bound, sorted(worst.items(), key=lambda item: -item[1])[:5]
    assert found["models"].keys() == expected["models"].keys() and expected["models"]
    different = {key: float((tensor - found["models"][key]).abs().max()) for key, tensor in expected["models"].items()}
    assert max(different.values()) <= bound, max(different.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", ["straight", "as saved"])
def test_a_release_goes_on_where_the_other_saved(name: str, runs: Any) -> None:
    for side, origin in (("this", "other"), ("other", "this")):
        check_within(BOUND, runs[origin, "straight"], runs[side, name])


def test_in_another_layout_too(runs: Any) -> None:
    """Both releases, each from the other's checkpoint, come to the same; one that goes on from the wrong place does not
    come to where the straight run came, as far as a layout's rounding lets these agree."""
    check_within(BOUND, runs["this", "tensor 2"], runs["other", "tensor 2"])
    for side, origin in (("this", "other"), ("other", "this")):
        check_within(TOLERANCE, runs[origin, "straight"], runs[side, "tensor 2"])


OPEN = ["rollout.filter.lower=0.0", "rollout.filter.upper=1.0", "rollout.oversample=1.0"]
QUICK = {
    "sft": ["run.steps=10"],
    "train": ["run.steps=2", "eval.every=2", "eval.max_prompts=16", *OPEN],
}
"""The quick start's two stages, cut short: what it has learned by then is little, so that the filter stays open."""


def test_the_quick_start_is_the_same(tmp_path: Path) -> None:
    """The user's own commands with each interpreter, and nothing of megatron-core's own on the console."""
    rows = {}
    for side, python in SIDES.items():
        folder = tmp_path / side
        folder.mkdir()
        environment = plain_environment() | {"PYTHONPATH": str(ROOT)}
        quick = ROOT / "examples" / "quickstart"
        for command in (
            [str(quick / "make_task.py")],
            ["-m", "prime_megatron", "sft", str(quick / "sft.yaml"), *QUICK["sft"]],
            ["-m", "prime_megatron", "train", str(quick / "prime.yaml"), *QUICK["train"]],
        ):
            done = subprocess.run(
                [python, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert "DEPRECATED" not in done.stderr + done.stdout and "deprecated" not in done.stderr
        lines = (folder / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
        rows[side] = [json.loads(line) for line in lines]
    worst = differences(rows["this"], rows["other"], TIMINGS)
    assert len(rows["this"]) == 3 and worst
    assert max(worst.values()) <= BOUND, sorted(worst.items(), key=lambda item: -item[1])[:5]
