"""What is asked of an engine's live tensors before the policy is written into them."""

from __future__ import annotations

import json

import pytest
import torch

from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.families.engine_layout import VLLM_EXPERTS, fused_shapes
from prime_megatron.run.engines import check_shapes
from tests.unit.test_families_megatron_layout import MOE


def config(engine: str, tensor: int, expert: int) -> TrainConfig:
    rollout = {"engine": engine, "tensor": tensor, "expert": expert}
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["d"]}}
    return TrainConfig.model_validate_json(json.dumps({**values, "rollout": rollout}))


@pytest.mark.parametrize(
    ("engine", "expert", "block"), [("sglang", 1, "experts"), ("sglang", 2, "experts"), ("vllm", 1, VLLM_EXPERTS)]
)
def test_live_tensors_that_the_engine_pads_are_refused(engine: str, expert: int, block: str) -> None:
    settings = config(engine, 2, expert)
    shapes = fused_shapes(MOE, 2, experts_module=block, expert_size=expert)
    live = {name: torch.empty(shape) for name, shape in shapes.items()}
    check_shapes(settings, MOE, live)
    name = f"model.layers.1.mlp.{block}.w13_weight"
    experts, rows, hidden = shapes[name]
    assert (experts, rows) == (4 // expert, 2 * 8 * expert // 2)
    live[name] = torch.empty(experts, rows + 4, hidden)
    with pytest.raises(InputError, match=rf"^rollout\.transport: .* has {name} as \[{experts}, {rows + 4}, {hidden}\]"):
        check_shapes(settings, MOE, live)


def test_a_live_tensor_that_the_layout_does_not_know_is_refused() -> None:
    live = {name: torch.empty(shape) for name, shape in fused_shapes(MOE, 1).items()}
    live["model.layers.0.mlp.experts.w13_bias"] = torch.empty(4, 16)
    with pytest.raises(InputError, match="w13_bias"):
        check_shapes(config("sglang", 1, 1), MOE, live)


def test_a_live_tensor_that_the_engine_has_not_is_refused() -> None:
    live = {name: torch.empty(shape) for name, shape in fused_shapes(MOE, 1).items()}
    del live["model.norm.weight"]
    with pytest.raises(InputError, match=r"has model\.norm\.weight as \[\], expected \[\d+\]"):
        check_shapes(config("sglang", 1, 1), MOE, live)
