"""Bytes that a model holds on one rank as long as it is on the device."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import ParallelConfig
from prime_megatron.families.count import RankParameters
from prime_megatron.parallel.topology import Coordinates, ParallelSizes
from prime_megatron.plan.buffers import buffers_of

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
    """One model on one rank, to the byte: ``rehearse`` holds it against what Megatron builds."""

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


@dataclass(frozen=True)
class StageMemory:
    """One model on every rank of a pipeline stage. All hold the same weights and gradients; with the distributed
    optimizer the parts of its state differ by the padding in them."""

    weights: int
    gradients: int
    main_itemsize: int
    """Bytes of a main weight that is not a weight itself."""
    dense: tuple[int, ...]
    """Elements whose state is on each data- and context-parallel rank; one entry where every rank has all."""
    experts: tuple[int, ...]
    """The same of experts with buffers of their own, by expert-data-parallel rank."""

    def of(self, at: Coordinates, sizes: ParallelSizes) -> RoleMemory:
        """On the rank with these coordinates."""
        mine = self.dense[(at.data * sizes.context + at.context) % len(self.dense)]
        return self._of(mine + self.experts[at.expert_data % len(self.experts)])

    def largest(self, sizes: ParallelSizes) -> RoleMemory:
        """On the rank that holds most."""
        per_stage = sizes.world // sizes.pipeline
        return max((self.of(sizes.coordinates(rank), sizes) for rank in range(per_stage)), key=lambda held: held.total)

    def _of(self, mine: int) -> RoleMemory:
        main = self.main_itemsize * mine
        return RoleMemory(
            float(self.weights), float(self.gradients), float(MOMENTS_BYTES * mine + main), float(main),
            float(STEP_BYTES * mine),
        )  # fmt: skip


def stage_memory(
    params: RankParameters, parallel: ParallelConfig, sizes: ParallelSizes, dtype: str, *, trained: bool
) -> StageMemory:
    """What the ranks of a stage with these parameters hold.

    The distributed optimizer shares its state among the ranks that hold the same parameters: data- and context-parallel
    ones of the dense ones, ``expert_data`` of the experts.
    """
    itemsize, main = ITEMSIZE[dtype], MAIN_WEIGHT_BYTES if dtype == "bfloat16" else 0
    if not trained:
        return StageMemory(params.total * itemsize, 0, 0, (0,), (0,))
    if not parallel.distributed_optimizer:
        return StageMemory(params.total * itemsize, params.total * GRADIENT_BYTES, main, (params.total,), (0,))
    flat = buffers_of(params, parallel, sizes)
    return StageMemory(flat.numel * itemsize, flat.numel * GRADIENT_BYTES, main, flat.dense.shards, flat.experts.shards)


def role_memory(
    params: RankParameters, parallel: ParallelConfig, sizes: ParallelSizes, dtype: str, *, trained: bool
) -> RoleMemory:
    """What the rank of a stage that holds most of a model does hold of it."""
    return stage_memory(params, parallel, sizes, dtype, trained=trained).largest(sizes)
