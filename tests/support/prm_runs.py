"""Labelled toy responses, and a PRM run on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.support.toy import make_model


def make_labelled(path: Path, *, prompts: int = 12, samples: int = 4, seed: int = 0) -> str:
    """Additions with right and wrong answers in JSON lines, as `generate` writes them; some with ids of one's own."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for index in range(prompts):
            a, b = rng.randrange(10), rng.randrange(10)
            for sample in range(samples):
                right = sample == 0 or (sample + 1 < samples and rng.random() < 0.5)
                answer = a + b if right else a + b + rng.randrange(1, 9)
                row: dict[str, Any] = {
                    "id": f"q{index}",
                    "sample": sample,
                    "prompt": [{"role": "user", "content": f"{a}+{b}?"}],
                    "response": f"so\n\nit is\n\n\\boxed{{{answer}}}",
                    "truncated": False,
                    "ground_truth": str(a + b),
                    "outcome": float(right),
                }
                file.write(json.dumps(row) + "\n")
    return str(path)


def prm_config(folder: Path, **sections: Any) -> dict[str, Any]:
    """Four steps of a small PRM; sections win."""
    return {
        "run": {"output_dir": str(folder / "straight"), "steps": 4},
        "model": make_model(folder / "model", hidden=32, layers=2),
        "dtype": "float32",
        "data": {
            "train": [make_labelled(folder / "rows.jsonl")],
            "held_out": [make_labelled(folder / "held_out.jsonl", prompts=7, seed=1)],
            "max_tokens": 64,
            "group_size": 4,
        },
        "prm": {"beta": 0.5},
        "batch_size": 5,
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 1},
        "checkpoint": {"every": 1, "keep_last": 10},
        "log": {"tensorboard": False},
        **sections,
    }
