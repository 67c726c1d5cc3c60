"""Running the trainer in tests: gloo ranks, metrics back."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from tests.distributed.spawn import run_ranks
from tools.parity_work.runs import TIMINGS, differences, judge, read_lines, train_rank

__all__ = ["TIMINGS", "check_same", "differences", "judge", "read_lines", "run", "train_all", "train_rank"]

TOLERANCE = 1e-5
# A recording was made by another policy than the one that is trained on it, so engine and trainer differ by design.
SKIP = (*TIMINGS, "engine/")


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
