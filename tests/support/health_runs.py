"""Runs whose PRM is watched: rollouts with an outcome that a PRM learns, and labels that turn over from a step on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prime_megatron.types import Group, Prompt, Sample
from tests.support.resume_runs import train_rank
from tests.support.toy import make_model, merge, settings

END, FIRST, LAST = 1, 4, 50
"""The toy's end of a response, and the ids of its characters."""
NEVER = 10**9


def make_rollouts(path: Path, steps: int, *, prompts: int, samples: int = 4, seed: int = 0) -> str:
    """A recording of random responses; right are those with more characters of even id than of odd id."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for step in range(1, steps + 1):
            groups = []
            for place in range(prompts):
                draw = (step - 1) * prompts + place
                prompt = Prompt(str(draw), draw, (2, *rng.integers(FIRST, LAST, 3).tolist(), 3), "math", "0")
                groups.append(Group(prompt, tuple(_response(rng) for _ in range(samples))))
            file.write(json.dumps({"step": step, "groups": [asdict(group) for group in groups]}) + "\n")
    return str(path)


def _response(rng: np.random.Generator) -> Sample:
    ids = rng.integers(FIRST, LAST, 2 * int(rng.integers(2, 5)) + 1)  # an odd number: never a draw
    even = (ids % 2 == 0).mean() > 0.5
    return Sample((*ids.tolist(), END), (-1.0,) * (len(ids) + 1), "stop", 0, "x", float(even), "right")


def watched(folder: Path, steps: int, *, prompts: int = 8, **sections: Any) -> dict[str, Any]:
    """A run on such rollouts: the first step held out, a check after every third."""
    base = settings(
        make_model(folder / "model", hidden=32, layers=2),
        str(_one_row(folder / "prompts.jsonl")),
        folder / "straight",
        run={"steps": steps},
        rollout={
            "engine": "replay", "replay": make_rollouts(folder / "rollouts.jsonl", steps, prompts=prompts),
            "prompts_per_step": prompts,
        },
        models={"prm": {"optimizer": {"lr": 1e-2}, "num_mini_batches": 4}},
        prm={"beta": 0.5, "health": {"every": 3, "margin": 0.1}, "step_delimiter": "e"},
    )  # fmt: skip
    return merge(base, sections)


def _one_row(path: Path) -> Path:
    row = {"prompt": [{"role": "user", "content": "1"}], "ability": "math", "reward_model": {"ground_truth": "1"}}
    path.write_text(json.dumps(row) + "\n")
    return path


def watch_rank(text: str, spoilt_from: int, resume: str | None) -> list[str]:
    """A run on this rank whose PRM learns turned-over outcomes from a step on; a digest of its PRM after every step."""
    from prime_megatron import trainer

    learn, finish = trainer.train_prm, trainer.PrimeTrainer.finish_step
    digests: list[str] = []
    now = [0]

    def train_prm(prm: Any, batch: Any, *rest: Any) -> Any:
        if now[0] >= spoilt_from:
            rollout = dataclasses.replace(batch.rollout, outcome_N=1.0 - batch.rollout.outcome_N)
            batch = dataclasses.replace(batch, rollout=rollout)
        return learn(prm, batch, *rest)

    def finish_step(self: Any, index: int) -> None:
        now[0] = index
        finish(self, index)
        if self.parts.roles.prm is not None:
            digests.append(_digest(self.parts.roles.prm.params()))

    trainer.train_prm, trainer.PrimeTrainer.finish_step = train_prm, finish_step  # type: ignore[method-assign]
    try:
        assert train_rank(text, resume, lambda: None) == 0
    finally:
        trainer.train_prm, trainer.PrimeTrainer.finish_step = learn, finish  # type: ignore[method-assign]
    return digests


def _digest(params: dict[tuple[int, str], torch.Tensor]) -> str:
    found = hashlib.sha256()
    for _, tensor in sorted(params.items()):
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def watch_in_turn(runs: str, folder: str) -> list[list[str]]:
    """Several such runs, one after the other on the same ranks: [settings, spoilt from, resume] each."""
    found = []
    for index, (row, spoilt_from, resume) in enumerate(json.loads(runs)):
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/store-{index}",
                rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
            )  # fmt: skip
        found.append(watch_rank(json.dumps(row), spoilt_from, resume))
    return found
