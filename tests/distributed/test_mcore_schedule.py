"""The learning rate of every update of a run: linear to the peak, half a cosine to the floor, both reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

LR, FLOOR = 1e-3, 1e-5
CASES = [(8, 0), (1, 0), (2, 0), (8, 3), (8, 7), (8, 8), (8, 12), (8, 0.3), (100, 0.07)]
"""Updates of the run, updates of its warm-up or their part of it."""


def oracle(updates: int, warmup: int) -> np.ndarray:
    """Update u of the warm-up runs at u / warmup of the peak; what is left, the peak at most, falls by half a cosine to
    the floor at the last update."""
    number = np.arange(1, updates + 1, dtype=np.float64)
    # Behind a warm-up its last update has the peak; without one the first has.
    first = warmup if warmup else 1
    share = (number - first) / max(updates - first, 1)
    rate = FLOOR + (LR - FLOOR) * (1 + np.cos(np.pi * share)) / 2
    return np.where(number <= warmup, LR * number / max(warmup, 1), rate)


def rates(folder: str) -> list[list[float]]:
    import torch

    from prime_megatron.config import OptimizerConfig, ParallelConfig
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.mcore.role import Role

    config = ParallelConfig()
    topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
    found = []
    for updates, warmup in CASES:
        key = "warmup_ratio" if isinstance(warmup, float) else "warmup_steps"
        optimizer = OptimizerConfig(lr=LR, min_lr=FLOOR, schedule="cosine", **{key: warmup})
        role = Role("policy", folder, topology, config, dtype=torch.float32, optimizer=optimizer, total_updates=updates)
        assert role.optimizer is not None
        role.optimizer.zero_grad()
        found.append([role.optimizer.step().lr for _ in range(updates)])
    return found


def test_a_cosine_reaches_its_floor_and_its_peak(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    for (updates, warmup), found in zip(CASES, run_ranks(rates, 1, str(tmp_path / "model"))[0], strict=True):
        warmup = {0.3: 3, 0.07: 7}.get(warmup, warmup)  # a part is rounded up
        np.testing.assert_allclose(found, oracle(updates, int(warmup)), rtol=1e-12, err_msg=f"{updates} {warmup}")
        if updates > max(warmup, 1):
            np.testing.assert_allclose([max(found), found[-1]], [LR, FLOOR], rtol=1e-12)
