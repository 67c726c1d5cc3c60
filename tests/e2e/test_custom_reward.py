"""A reward of one's own in real runs: the example learns by it, and one that fails in every way ends no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.toy import make_model, make_prompts, settings

ROOT = Path(__file__).parents[2]

WILD = '''
import os, time

def score(response, extra_info):
    """Fails in another way for each prompt of the data."""
    match extra_info["index"] % 6:
        case 0: raise ValueError("as asked")
        case 1: return "1"
        case 2: return float("nan")
        case 3: return 2
        case 4: os._exit(1)
    return 0.5
'''


def prime_megatron(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "prime_megatron", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_example_learns_by_its_own_reward(tmp_path: Path) -> None:
    task, output = tmp_path / "task", tmp_path / "out"
    make = [sys.executable, "examples/quickstart/make_task.py", "--output", str(task)]
    subprocess.run(make, cwd=ROOT, check=True, timeout=250, capture_output=True)
    overrides = [f"models.policy.path={task / 'model'}", f"run.output_dir={output}", "run.steps=12"]
    done = prime_megatron("train", "examples/custom_reward/prime.yaml", *overrides, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "ability 'characters' is scored by examples.custom_reward.rewards:wanted_characters" in done.stdout
    steps = rows(output / "metrics.jsonl")
    assert steps[-1]["rollout/outcome"] > steps[1]["rollout/outcome"] + 0.1
    assert all(row["rollout/verifier_errors"] == 0 for row in steps[1:])
    for row in rows(output / "samples.jsonl"):
        text = row["response"]
        share = sum(character.isdigit() for character in text) / len(text) if len(text) >= 8 else 0.0
        assert row["outcome"] == share, text


def test_a_reward_that_fails_in_every_way_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "wild.py").write_text(WILD)
    config = settings(
        make_model(tmp_path / "model", hidden=32, layers=2),
        make_prompts(tmp_path / "prompts.jsonl"),
        tmp_path / "out",
        run={"steps": 1},
        data={"shuffle": False},
        verify={"custom": {"math": "wild:score"}},
        rollout={"prompts_per_step": 6, "samples_per_prompt": 2},
    )
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    done = prime_megatron("train", "run.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    step = rows(tmp_path / "out" / "metrics.jsonl")[-1]
    kinds = ("error", "wrong_type", "not_finite", "out_of_range", "died")
    assert {kind: step[f"rollout/verifier_{kind}"] for kind in kinds} == dict.fromkeys(kinds, 2)
    assert (step["rollout/verifier_timeout"], step["rollout/verifier_errors"]) == (0, 10)
    outcomes = {row["uid"]: row["outcome"] for row in rows(tmp_path / "out" / "samples.jsonl")}
    assert outcomes == {f"0-{index}": 0.5 if index == 5 else 0.0 for index in range(6)}
    assert "ValueError" in done.stdout + done.stderr

    config["verify"]["custom"]["math"] = "wild:scores"
    (tmp_path / "typo.yaml").write_text(json.dumps(config))
    for verb in ("train", "validate"):
        refused = prime_megatron(verb, "typo.yaml", *(["--overwrite"] if verb == "train" else []), cwd=tmp_path)
        assert refused.returncode == 2
        assert "verify.custom.math: wild (" in refused.stderr and "did you mean 'score'?" in refused.stderr
    assert (tmp_path / "out" / "samples.jsonl").exists(), "the refused run has touched nothing"
