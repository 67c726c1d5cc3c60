"""Starts and stops torch.distributed and megatron-core's process groups."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from prime_megatron.config.model import ParallelConfig
from prime_megatron.device import bind_local_rank, keep_freed_memory
from prime_megatron.mcore import fixes
from prime_megatron.mcore.cpu import shims
from prime_megatron.mcore.versions import quiet_deprecations
from prime_megatron.parallel.topology import ParallelSizes, Topology


def start_megatron(config: ParallelConfig, *, seed: int, backend: str, timeout_s: float) -> Topology:
    """Patches megatron-core for this machine, joins the process group, and lays the ranks out.

    backend: "gloo" (CPU) or "nccl" (CUDA); rank and world size come from torchrun's environment (one process
    without it). seed: of the model-parallel random states. Raises InputError where sizes do not divide.
    """
    keep_freed_memory()
    quiet_deprecations()
    shims.apply()
    fixes.apply()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    sizes = ParallelSizes.from_config(config, _world_size())
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        _init_process_group(backend, timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=sizes.expert_tensor,
        # Nothing here uses them, and each would connect all its ranks at once.
        create_gloo_process_groups=False,
        distributed_timeout_minutes=max(1, round(timeout_s / 60)),
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return _topology(sizes, timeout)


def stop_megatron() -> None:
    """Destroys the groups made by start_megatron."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _world_size() -> int:
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else 1


def _init_process_group(backend: str, timeout: timedelta) -> None:
    if backend == "nccl":
        bind_local_rank()
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def _topology(sizes: ParallelSizes, timeout: timedelta) -> Topology:
    from megatron.core import parallel_state as ps

    rank = dist.get_rank()
    at = sizes.coordinates(rank)
    model = None
    for data in range(sizes.data):
        ranks = [r for r in range(sizes.world) if sizes.coordinates(r).data == data]
        group = dist.new_group(ranks, timeout=timeout)
        if data == at.data:
            model = group
    assert model is not None
    assert ps.get_tensor_model_parallel_rank() == at.tensor and ps.get_pipeline_model_parallel_rank() == at.pipeline
    assert ps.get_data_parallel_rank() == at.data and ps.get_context_parallel_rank() == at.context
    assert ps.get_expert_model_parallel_rank() == at.expert
    return Topology(
        sizes=sizes,
        rank=rank,
        at=at,
        tensor=ps.get_tensor_model_parallel_group(),
        pipeline=ps.get_pipeline_model_parallel_group(),
        data=ps.get_data_parallel_group(),
        context=ps.get_context_parallel_group(),
        model=model,
        data_context=ps.get_data_parallel_group(with_context_parallel=True),
        expert=ps.get_expert_model_parallel_group(),
        expert_tensor=ps.get_expert_tensor_parallel_group(),
        expert_data=ps.get_expert_data_parallel_group(),
    )
