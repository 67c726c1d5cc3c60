"""Weights that are no numbers end a run by run.max_nonfinite, in one line."""

from __future__ import annotations

import json
import shutil
import traceback
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from prime_megatron.config import TrainConfig
from prime_megatron.errors import RunError
from prime_megatron.trainer import train
from tests.support.ranks import run_ranks
from tests.support.resume_runs import at, toy

MATRIX = "model.layers.1.mlp.down_proj.weight"
CASES: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "policy-nan": ("policy", MATRIX, float("nan"), {}),
    "policy-inf": ("policy", MATRIX, float("inf"), {"eval": {"every": 1}}),
    "policy-nan-nucleus": ("policy", "model.norm.weight", float("nan"), {"rollout": {"sampling": {"top_p": 0.9}}}),
    "policy-diverged": ("policy", MATRIX, 3e38, {}),
    "prm-nan": ("prm", MATRIX, float("nan"), {}),
    "prm-inf-before": ("prm", MATRIX, float("-inf"), {"prm": {"update": "before"}}),
    "prm-nan-bon": ("prm", MATRIX, float("nan"), {"prm": {"update": "reverse", "loss": "dpo"}}),
    "reference-nan": ("reference", MATRIX, float("nan"), {}),
    "critic-nan": ("critic", MATRIX, float("nan"), {"advantage": {"estimator": "gae"}}),
}
"""Model, tensor, value, settings."""


def run_each(configs: dict[str, str]) -> dict[str, str]:
    """How each run ends, on this rank."""
    said = {}
    for name, text in configs.items():
        config = TrainConfig.model_validate_json(text)
        if not dist.is_initialized():  # the run before has ended its own
            dist.init_process_group("gloo", f"file://{config.run.output_dir}.store", rank=0, world_size=1)
        try:
            said[name] = f"exit code {train(config, resume=None, overwrite=False)}"
        except RunError as error:
            said[name] = f"RunError: {error}"
        except Exception:
            said[name] = traceback.format_exc()[-1500:]
            if dist.is_initialized():
                dist.destroy_process_group()
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("not_finite")
    base = toy(folder, run={"steps": 4}, models={"policy": {"num_mini_batches": 1}})
    configs = {}
    for name, (role, tensor, value, sections) in CASES.items():
        broken = folder / f"{name}-model"
        shutil.copytree(folder / "model", broken)
        tensors = load_file(broken / "model.safetensors")
        tensors[tensor] = torch.full_like(tensors[tensor], value)
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        models = {"reference": str(broken)} if role == "reference" else {role: {"path": str(broken)}}
        if role == "policy":  # the PRM stays whole
            models |= {"prm": {"path": str(folder / "model")}}
        data = {"data": {"eval": [str(folder / "prompts.jsonl")]}} if "eval" in sections else {}
        config = at(
            base, folder / name, models=models, checkpoint={"every": 0, "export_final": False}, **data, **sections
        )
        configs[name] = json.dumps(config)
    return run_ranks(run_each, 1, configs, timeout_s=250)[0]


@pytest.mark.parametrize("name", CASES)
def test_no_numbers_end_by_max_nonfinite(name: str, said: dict[str, str]) -> None:
    assert "updates in a row were not finite (run.max_nonfinite 3)" in said[name], said[name]
    assert said[name].startswith("RunError: step ") and "\n" not in said[name]
