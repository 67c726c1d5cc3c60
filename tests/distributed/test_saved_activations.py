"""The memory model's activations against what autograd really saves in a forward of Megatron's layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prime_megatron.config import ParallelConfig
from prime_megatron.families.read import read_config
from prime_megatron.mcore.initialize import start_megatron
from prime_megatron.mcore.model import build_model
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.activations import Activations
from tests.support.models import make_model, pack, restart, sequences
from tests.support.ranks import run_ranks

LENGTH, COUNT = 64, 8
SPLIT = {"tensor": 2, "sequence": True}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"recompute": "selective"}, {"recompute": "full"}],
    2: [SPLIT, SPLIT | {"recompute": "full"}],
}


def saved(folder: str, cases: str) -> list[int]:
    """Bytes of every storage that a forward saves for its backward, weights and integers left out, by layout."""
    found = []
    for parallel in json.loads(cases):
        config = ParallelConfig.model_validate_json(json.dumps(parallel))
        topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
        (model,) = build_model(read_config(folder), topology, config, torch.bfloat16, wrap_ddp=False)
        for param in model.parameters():
            torch.nn.init.normal_(param, std=0.02)
        model.train()
        tokens, _, packed, places = pack(sequences([LENGTH] * COUNT), topology, sequence_parallel=config.sequence)
        weights = {param.untyped_storage().data_ptr() for param in model.parameters()}
        held: dict[int, Tensor] = {}

        def note(tensor: Tensor, held: dict[int, Tensor] = held, weights: set[int] = weights) -> Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in weights and tensor.is_floating_point():
                held[address] = tensor  # alive, so no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(tokens, places, None, packed_seq_params=packed)
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in held.values()))
        restart()
    return found


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("qwen2", {1: LAYOUTS[1], 2: [*LAYOUTS[2], {"tensor": 2}, {"context": 2}]}),
        ("qwen3", LAYOUTS),
        ("qwen3_moe", {1: LAYOUTS[1], 2: [*LAYOUTS[2], {"expert": 2}, SPLIT | {"expert": 2}]}),
        ("mixtral", {2: [SPLIT, {"expert": 2}]}),
    ],
)
def test_what_a_forward_keeps(name: str, layouts: dict[int, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Within 5 percent, the mean of all ranks (experts are not used evenly). The last norm keeps its input, too."""
    experts = {"moe_intermediate_size": 96} if name == "qwen3_moe" else {}
    make_model(tmp_path, name, hidden_size=128, intermediate_size=384, **experts)
    family = read_config(tmp_path)
    for ranks, cases in layouts.items():
        real = run_ranks(saved, ranks, str(tmp_path), json.dumps(cases))
        for index, parallel in enumerate(cases):
            config = ParallelConfig.model_validate_json(json.dumps(parallel))
            sizes = ParallelSizes.from_config(config, ranks)
            planned = Activations(family, config, sizes, 2, LENGTH * COUNT, 1, 1.0, value_head=False)
            split = sizes.context * (sizes.tensor if config.sequence else 1)
            last_norm = 2 * family.hidden * LENGTH * COUNT / split
            measured = sum(by_case[index] for by_case in real) / ranks
            assert family.layers * planned.kept() + last_norm == pytest.approx(measured, rel=0.05), (parallel, ranks)
