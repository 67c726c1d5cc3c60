"""What the memory model counts is what Megatron builds: parameters of every rank, bytes of a trained role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.families.count import num_parameters, rank_parameters
from prime_megatron.families.read import read_config
from prime_megatron.mcore.optimizer import Optimizer
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.roles import stage_memory
from tests.support.models import FAMILIES, make_model, restart, start
from tests.support.ranks import run_ranks

DENSE: list[dict[str, Any]] = [
    {},
    {"tensor": 2},
    {"tensor": 4},
    {"pipeline": 2},
    {"pipeline": 4},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"pipeline": 2, "pipeline_layers": [3, 1]},
    {"tensor": 2, "pipeline": 2, "sequence": True},
    {"tensor": 2, "context": 2},
]
EXPERTS: list[dict[str, Any]] = [
    {},
    {"expert": 4},
    {"tensor": 2, "sequence": True},
    {"tensor": 2, "expert": 2, "sequence": True},
    {"pipeline": 2, "expert": 2},
    {"tensor": 2, "expert_tensor": 2, "sequence": True},
    {"tensor": 4, "expert": 2, "expert_tensor": 2, "sequence": True},
]
RANKS = 4


def built(folder: str, layouts: str, value_head: bool) -> list[int]:
    """Parameters on this rank in every layout, each stored tensor once; no weights are read."""
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.mcore.model import build_model

    found = []
    for parallel in json.loads(layouts):
        config = ParallelConfig.model_validate_json(json.dumps(parallel))
        topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
        chunks = build_model(
            read_config(folder), topology, config, torch.float32, wrap_ddp=False, value_head=value_head
        )
        tensors = {param.data_ptr(): param.numel() for chunk in chunks for param in chunk.parameters()}
        found.append(sum(tensors.values()))
        restart()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_every_rank(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, name)
    family = read_config(tmp_path)
    assert num_parameters(family) == sum(param.numel() for param in model.parameters())
    layouts = EXPERTS if family.experts else DENSE
    by_rank = run_ranks(built, RANKS, str(tmp_path), json.dumps(layouts), False, timeout_s=240.0)
    for index, parallel in enumerate(layouts):
        config = ParallelConfig.model_validate_json(json.dumps(parallel))
        sizes = ParallelSizes.from_config(config, RANKS)
        for rank in range(RANKS):
            counted = rank_parameters(family, sizes, sizes.coordinates(rank).pipeline, config.pipeline_layers)
            assert counted.total == by_rank[rank][index], (parallel, rank)


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_moe"])
def test_a_critic_has_its_head_in_place_of_the_vocabulary(name: str, tmp_path: Path) -> None:
    make_model(tmp_path, name)
    family = read_config(tmp_path)
    layouts = [{}, {"pipeline": 2}]
    by_rank = run_ranks(built, 2, str(tmp_path), json.dumps(layouts), True, timeout_s=120.0)
    for index, parallel in enumerate(layouts):
        sizes = ParallelSizes.from_config(ParallelConfig.model_validate_json(json.dumps(parallel)), 2)
        for rank in range(2):
            stage = sizes.coordinates(rank).pipeline
            assert rank_parameters(family, sizes, stage, value_head=True).total == by_rank[rank][index]


def trained(folder: str, cases: str) -> list[list[int]]:
    """[parameters, gradients, optimizer state, of it before the first update] in bytes on this rank, for every layout
    and compute dtype."""
    from prime_megatron.mcore.host_memory import HostPool
    from prime_megatron.mcore.offload import HostCopy

    found = []
    for parallel, dtype in json.loads(cases):
        _, chunks = start(parallel, folder, ddp=True, dtype=dtype)
        config = ParallelConfig.model_validate_json(json.dumps(parallel))
        optimizer = Optimizer(chunks, OptimizerConfig(), config, getattr(torch, dtype), 1)
        memory = HostCopy("model", chunks, optimizer.megatron, HostPool())
        at_start = memory.device_bytes()["optimizer"]
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.step()
        held = memory.device_bytes()
        found.append([held["parameters"], held["gradients"], held["optimizer"], at_start])
        restart()
    return found


def test_bytes_of_a_trained_role(tmp_path: Path) -> None:
    """To the byte, on every rank, Megatron's padding of its flat buffers included."""
    for name, layouts in (
        ("qwen2", [{}, {"tensor": 2}, {"pipeline": 2}, {"context": 2}, {"distributed_optimizer": False}]),
        ("qwen2_tied", [{"pipeline": 2}, {"overlap_grad_reduce": True}]),
        ("qwen3_moe", [{"expert": 2}, {"expert": 2, "pipeline": 2}, {"distributed_optimizer": False, "expert": 2}]),
    ):
        folder = tmp_path / name
        make_model(folder, name)
        family = read_config(folder)
        cases = [(parallel, dtype) for parallel in layouts for dtype in ("float32", "bfloat16")]
        by_rank = run_ranks(trained, RANKS, str(folder), json.dumps(cases), timeout_s=240.0)
        for index, (parallel, dtype) in enumerate(cases):
            config = ParallelConfig.model_validate_json(json.dumps(parallel))
            sizes = ParallelSizes.from_config(config, RANKS)
            for rank in range(RANKS):
                at = sizes.coordinates(rank)
                params = rank_parameters(family, sizes, at.pipeline)
                memory = stage_memory(params, config, sizes, dtype, trained=True).of(at, sizes)
                wanted = [memory.weights, memory.gradients, memory.optimizer, memory.main_weights]
                assert by_rank[rank][index] == wanted, (name, parallel, dtype, rank)
