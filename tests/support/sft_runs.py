"""Supervised toy runs, and results that compare bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.runs import TIMINGS
from tests.support.toy import make_model, make_sft

STEPS = 4


def sft_config(folder: Path, **parallel: Any) -> dict[str, Any]:
    return {
        "run": {"output_dir": str(folder / "straight"), "steps": STEPS},
        "model": make_model(folder / "model", hidden=32, layers=2),
        "dtype": "float32",
        # Four of ten rows a step, so that an epoch ends within one; two rows a micro-batch.
        "data": {"train": [make_sft(folder / "rows.jsonl", 13)], "max_tokens": 64, "held_out_share": 0.25},
        "batch_size": 4,
        "packing": {"max_tokens": 40},
        "eval_every": 2,
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 1},
        "parallel": parallel,
        "checkpoint": {"every": 1, "keep_last": 10},
        "log": {"tensorboard": False},
    }


def outcome(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(metrics without timings, the exported tensors)."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]
    return metrics, load_file(output / "model" / "model.safetensors")


def assert_same(one: Any, two: Any) -> None:
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys() and one[1]
    assert all(tensor.equal(two[1][key]) for key, tensor in one[1].items())
