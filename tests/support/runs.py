"""Runs of the trainer on gloo ranks, and their metrics compared."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from prime_megatron.config import TrainConfig
from tests.support.ranks import run_ranks

TIMINGS = ("time/", "speed/", "memory/")
"""Beginnings of metrics that differ from run to run."""
TOLERANCE = 1e-5
# A recording was made by another policy than the one that is trained on it, so engine and trainer differ by design.
SKIP = (*TIMINGS, "engine/")


def train_rank(settings: str, resume: str | None = None) -> int:
    """A run on this rank, from a config in JSON; returns the exit code."""
    from prime_megatron.trainer import train

    return int(train(TrainConfig.model_validate_json(settings), resume=resume, overwrite=False))


def read_lines(settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A run's JSON-lines file."""
    lines = (Path(settings["run"]["output_dir"]) / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def judge(recording: Path, target: Path) -> str:
    """Copy a recording with outcomes by rule (a random model is never right): mixed within every group, one
    fractional. Returns the new path."""
    with recording.open() as source, target.open("w") as file:
        for line in source:
            row = json.loads(line)
            for index, group in enumerate(row["groups"]):
                # A prompt for a teacher that is told: two tokens more.
                *before, last = group["prompt"]["token_ids"]
                group["prompt"]["told_ids"] = [*before, 5, 6, last]
                for place, sample in enumerate(group["samples"]):
                    sample["outcome"] = float((index + place) % 2)
            row["groups"][0]["samples"][0]["outcome"] = 0.25
            file.write(json.dumps(row) + "\n")
    return str(target)


def differences(one: list[dict[str, Any]], two: list[dict[str, Any]], skip: tuple[str, ...]) -> dict[str, float]:
    """Largest difference of every metric over the steps, relative to 1 or the value where it is larger."""
    assert [row["step"] for row in one] == [row["step"] for row in two]
    worst: dict[str, float] = {}
    for a, b in zip(one, two, strict=True):
        keys = {key for key in a.keys() | b.keys() if not key.startswith(skip)}
        for key in keys:
            worst[key] = max(worst.get(key, 0.0), _difference(a.get(key), b.get(key)))
    return worst


def _difference(a: Any, b: Any) -> float:
    if a == b:
        return 0.0
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return math.inf
    difference = abs(a - b) / max(1.0, abs(a))
    return math.inf if math.isnan(difference) else difference


def train_all(runs: str) -> list[int]:
    """Several runs one after the other in one process, each with process groups of its own."""
    torch.distributed.destroy_process_group()
    del os.environ["RANK"]
    return [train_rank(json.dumps(settings)) for settings in json.loads(runs)]


def run(settings: dict[str, Any], world_size: int = 1, timeout_s: float = 240.0) -> list[dict[str, Any]]:
    """Train on gloo ranks; returns metrics.jsonl, step 0 first."""
    codes = run_ranks(train_rank, world_size, json.dumps(settings), timeout_s=timeout_s)
    assert codes == [0] * world_size
    return read_lines(settings, "metrics.jsonl")


def check_same(expected: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> None:
    """Every metric of two runs on the same recording within 1e-5."""
    worst = differences(expected, metrics, SKIP)
    assert max(worst.values()) <= TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


def misread_rank(settings: str) -> str:
    """A run on this rank whose trainer takes another rotary base than its engine; returns what ended it."""
    from prime_megatron.errors import RunError
    from prime_megatron.mcore import role
    from prime_megatron.trainer import train

    read = role.read_config
    role.read_config = lambda folder, **options: dataclasses.replace(read(folder, **options), rope_theta=100.0)
    try:
        train(TrainConfig.model_validate_json(settings), resume=None, overwrite=False)
    except RunError as error:
        return str(error)
    finally:
        role.read_config = read
    return ""


def alarmed_rank(settings: str) -> list[str]:
    """A run of three steps on this rank whose engine has one weight wrong in the last; returns what was warned of."""
    from prime_megatron.rollout.embedded.engine import EmbeddedEngine
    from prime_megatron.run.alarms import Alarms
    from prime_megatron.trainer import train

    update, lines, told = EmbeddedEngine.update_weights, Alarms.lines, []

    def spoil(engine: EmbeddedEngine, buckets: Any, version: int) -> None:
        update(engine, buckets, version)
        if version == 2:
            with torch.no_grad():
                next(target for name, target in engine.named_targets().items() if "down_proj" in name).neg_()

    def noting(alarms: Alarms, figures: Any, gap_limit: float | None) -> list[str]:
        found = lines(alarms, figures, gap_limit)
        told.append("".join(line for line in found if "log-probs differ" in line))
        return found

    EmbeddedEngine.update_weights, Alarms.lines = spoil, noting
    try:
        train(TrainConfig.model_validate_json(settings), resume=None, overwrite=False)
    finally:
        EmbeddedEngine.update_weights, Alarms.lines = update, lines
    return told
