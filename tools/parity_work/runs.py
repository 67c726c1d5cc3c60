"""Runs of the trainer, and their metrics compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prime_megatron.config import TrainConfig

TIMINGS = ("time/", "speed/", "memory/")
"""Beginnings of metrics that differ from run to run."""


def train_rank(settings: str) -> int:
    """A run on this rank, from a config in JSON; returns the exit code."""
    from prime_megatron.trainer import train

    return train(TrainConfig.model_validate_json(settings), resume=None, overwrite=False)


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
