"""Whether a layout fits the processes and itself. Pure: nothing is started."""

from __future__ import annotations

from typing import Literal

from prime_megatron.config.model import ParallelConfig
from prime_megatron.errors import InputError

Backend = Literal["gloo", "nccl"]


def check_parallel(parallel: ParallelConfig, world_size: int, backend: Backend | None = None) -> int:
    """The data-parallel size of a layout.

    Raises:
        InputError: the layout does not fit the processes or itself.
    """
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    product = f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} = {model_size}"
    if world_size % model_size:
        raise InputError(
            f"parallel: {product} does not divide the {world_size} processes "
            f"({world_size} = {world_size // model_size} x {model_size} + {world_size % model_size}); "
            "change parallel.*, or the number of processes"
        )
    _check_pipeline(parallel)
    _check_experts(parallel, world_size, backend)
    if parallel.sequence and parallel.tensor == 1:
        raise InputError(
            "parallel.sequence: splits activations over the tensor-parallel ranks, and parallel.tensor is 1; "
            "set parallel.tensor above 1 or parallel.sequence to false"
        )
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        raise InputError(
            "parallel.overlap_param_gather: only the distributed optimizer gathers parameters; "
            "set parallel.distributed_optimizer to true"
        )
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        raise InputError(
            "parallel.overlap_param_gather: Megatron overlaps the gather only together with the gradient reduction; "
            "set parallel.overlap_grad_reduce to true"
        )
    return world_size // model_size


def _check_pipeline(parallel: ParallelConfig) -> None:
    # The role turns on overlapped p2p whenever it interleaves: with megatron-core's batched p2p, two stages of
    # several chunks give wrong gradients without a word. On one stage interleaving has nothing to overlap.
    if (parallel.virtual_pipeline or 1) > 1 and parallel.pipeline == 1:
        raise InputError(
            "parallel.virtual_pipeline: chunks are interleaved over pipeline stages, and parallel.pipeline is 1; "
            "set parallel.pipeline above 1 or leave virtual_pipeline out"
        )
    layers = parallel.pipeline_layers
    if layers is None:
        return
    if len(layers) != parallel.pipeline:
        raise InputError(
            f"parallel.pipeline_layers: {len(layers)} numbers for {parallel.pipeline} pipeline stages; give one a stage"
        )
    if min(layers) < 1:
        raise InputError("parallel.pipeline_layers: every stage needs at least one layer")
    if (parallel.virtual_pipeline or 1) > 1:
        raise InputError(
            "parallel.pipeline_layers: does not say how a stage's layers split over the chunks of virtual_pipeline; "
            "leave one of them out"
        )


def _check_experts(parallel: ParallelConfig, world_size: int, backend: Backend | None) -> None:
    expert_tensor = parallel.expert_tensor or 1
    if parallel.expert > 1 or expert_tensor > 1:
        size = parallel.expert * expert_tensor * parallel.pipeline
        if world_size % size:
            raise InputError(
                f"parallel: expert {parallel.expert} x expert_tensor {expert_tensor} x pipeline {parallel.pipeline} "
                f"= {size} does not divide the {world_size} processes; change parallel.expert"
            )
    if expert_tensor > 1 and backend == "gloo":
        raise InputError(
            f"parallel.expert_tensor: {expert_tensor} needs gathers of uneven sizes, which gloo does not have; "
            "set it to 1 on CPUs"
        )
    if parallel.expert > 1 and parallel.tensor > 1 and not parallel.sequence:
        raise InputError(
            "parallel.expert: with parallel.tensor above 1 megatron-core trains experts only under sequence "
            "parallelism; set parallel.sequence to true"
        )
