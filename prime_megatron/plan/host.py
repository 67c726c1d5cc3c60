"""Host memory that models take beside the device's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import Offload, StageConfig, TrainConfig
from prime_megatron.plan.roles import GRADIENT_BYTES, MAIN_WEIGHT_BYTES, MOMENTS_BYTES, RoleMemory


@dataclass(frozen=True)
class HostMemory:
    """What one rank keeps in host memory, on the pipeline stage that keeps most; the interpreter and its libraries are
    not counted."""

    copies: float
    """Weights and optimizer state of every model that leaves the device, pinned from the start."""
    saving: float
    """More while a checkpoint is written, about: every rank gathers as float32 the optimizer's whole state of its part
    of a model, and copies the weights."""


def host_memory(config: TrainConfig | StageConfig, by_stage: Sequence[Sequence[tuple[bool, RoleMemory]]]) -> HostMemory:
    """Of a run whose models, (trained, memory), are on every pipeline stage as given."""
    mode = config.parallel.offload if isinstance(config, TrainConfig) else Offload.none
    # Where models take turns a checkpoint that is not written in the background is written model by model.
    one_by_one = mode is Offload.phases and not config.checkpoint.asynchronous
    copies = max(sum(state_bytes(memory) for _, memory in held) for held in by_stage)
    saving = [[_saving(memory) for trained, memory in held if trained] for held in by_stage]
    return HostMemory(
        copies if mode is not Offload.none else 0.0,
        max(max(sizes) if one_by_one else sum(sizes) for sizes in saving),
    )


def state_bytes(memory: RoleMemory) -> float:
    """Weights and optimizer state: gradients are never kept."""
    return memory.weights + memory.optimizer


def _saving(memory: RoleMemory) -> float:
    return memory.weights + memory.gradients / GRADIENT_BYTES * (MAIN_WEIGHT_BYTES + MOMENTS_BYTES)
