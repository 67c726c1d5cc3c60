"""Runs that are stopped, killed and resumed: gloo ranks, one toy, results that compare bit by bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.ranks import run_ranks
from tests.support.runs import TIMINGS
from tests.support.toy import make_model, make_prompts, merge, settings

Fault = Callable[[], None]
"""Called in every rank before training: breaks something there."""


def no_fault() -> None:
    """An undisturbed run."""


def toy(folder: Path, **sections: Any) -> dict[str, Any]:
    """Four steps with surplus groups: eight prompts are asked for, five make a batch, three wait."""
    base = settings(
        make_model(folder / "model", hidden=32, layers=2),
        make_prompts(folder / "prompts.jsonl"),
        folder / "straight",
        run={"steps": 4},
        models={"policy": {"num_mini_batches": 2}},
        rollout={"oversample": 1.6, "samples_per_prompt": 2, "sampling": {"max_response_tokens": 8}},
        checkpoint={"every": 1, "keep_last": 10, "export_final": True},
    )
    return merge(base, sections)


def at(base: dict[str, Any], output: Path, **sections: Any) -> dict[str, Any]:
    """The same run in another folder."""
    return merge(merge(base, {"run": {"output_dir": str(output)}}), sections)


def said_file(output: str | Path) -> Path:
    """Beside the output folder, whose content the run checks."""
    return Path(output).with_name(f"{Path(output).name}.log")


def said(output: Path) -> str:
    """What all ranks of all attempts printed."""
    return said_file(output).read_text()


def train_rank(text: str, resume: str | None, fault: Fault) -> int:
    from prime_megatron.config import TrainConfig
    from prime_megatron.trainer import train

    # The fork server's output is that of the first test; this run's goes to a file.
    with open(said_file(json.loads(text)["run"]["output_dir"]), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    fault()
    return int(train(TrainConfig.model_validate_json(text), resume=resume, overwrite=False))


def train(
    config: dict[str, Any], world_size: int, resume: str | None = None, fault: Fault = no_fault, timeout_s: float = 200
) -> set[int]:
    """Train on gloo ranks; returns the ranks' exit codes. Raises RuntimeError where a rank fails."""
    return set(run_ranks(train_rank, world_size, json.dumps(config), resume, fault, timeout_s=timeout_s))


def stopped_at(straight: Path, step: int, output: Path) -> None:
    """What the straight run had on disk once step ``step`` was saved; logs that go on, as after a crash."""
    (output / "checkpoints").mkdir(parents=True)
    name = f"step-{step:08d}"
    shutil.copytree(straight / "checkpoints" / name, output / "checkpoints" / name)
    for log in ("metrics.jsonl", "samples.jsonl"):
        shutil.copy(straight / log, output / log)


def outcome(output: Path) -> dict[str, Any]:
    """Everything that a run came to: metrics without timings, samples, both models' parameters."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows],
        "samples": (output / "samples.jsonl").read_text().splitlines(),
        "models": {
            (role, name): tensor
            for role in ("policy", "prm")
            for path in sorted((output / role).glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        },
    }


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Equal to the last bit."""
    assert one["metrics"] == two["metrics"]
    assert one["samples"] == two["samples"], "the runs saw other prompts or answers"
    assert one["models"].keys() == two["models"].keys() and one["models"]
    different = [key for key, tensor in one["models"].items() if not tensor.equal(two["models"][key])]
    assert not different, different[:3]
