"""Bytes that a model holds on one rank as long as it is on the device."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import ParallelConfig
from prime_megatron.families.count import RankParameters
from prime_megatron.parallel.topology import ParallelSizes

ITEMSIZE = {"bfloat16": 2, "float32": 4}
GRADIENT_BYTES = 4
"""Megatron's gradient buffer is float32 with either compute dtype (mcore/model.ddp_config)."""
MOMENTS_BYTES = 8
"""Adam's two, float32."""
MAIN_WEIGHT_BYTES = 4
"""The optimizer's float32 copy of bfloat16 weights; float32 weights are their own."""
STEP_BYTES = 4
"""Square roots of the second moments that torch's AdamW holds for all its parameters in a step."""


@dataclass(frozen=True)
class RoleMemory:
    """One model on one rank; megatron's padding of its flat buffers (below 0.1 % of a real model) is left out."""

    weights: float
    gradients: float
    optimizer: float
    """Moments, and main weights under bfloat16."""
    main_weights: float
    """The part of the optimizer that is there before the first update."""
    step: float
    """Temporaries of an optimizer step."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def at_start(self) -> float:
        """Before the first update: Adam's moments appear with it."""
        return self.weights + self.gradients + self.main_weights


def role_memory(
    params: RankParameters, parallel: ParallelConfig, sizes: ParallelSizes, dtype: str, *, trained: bool
) -> RoleMemory:
    """What a rank with these parameters holds.

    The distributed optimizer shares its state among the ranks that hold the same parameters: data- and context-parallel
    ones of the dense ones, ``expert_data`` of the experts.
    """
    weights = float(params.total * ITEMSIZE[dtype])
    if not trained:
        return RoleMemory(weights, 0.0, 0.0, 0.0, 0.0)
    shared = parallel.distributed_optimizer
    mine = params.dense / (sizes.data * sizes.context if shared else 1) + params.experts / (
        sizes.expert_data if shared else 1
    )
    main = MAIN_WEIGHT_BYTES * mine if dtype == "bfloat16" else 0.0
    gradients = float(params.total * GRADIENT_BYTES)
    return RoleMemory(weights, gradients, MOMENTS_BYTES * mine + main, main, STEP_BYTES * mine)
