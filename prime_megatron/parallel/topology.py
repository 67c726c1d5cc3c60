"""How the processes are arranged: sizes, this rank's coordinates, process groups.

Ranks are ordered as megatron-core orders them, fastest first: tensor, context, data, pipeline; and for
expert layers: expert-tensor, expert, expert-data, pipeline. The arithmetic needs no process group, so
validation and planners use it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prime_megatron.config.model import ParallelConfig
from prime_megatron.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in the grid."""

    tensor: int
    context: int
    data: int
    pipeline: int
    expert_tensor: int
    expert: int
    expert_data: int


@dataclass(frozen=True)
class ParallelSizes:
    """Sizes of every parallel dimension; checked on construction (InputError)."""

    world: int
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @classmethod
    def from_config(cls, config: ParallelConfig, world: int) -> ParallelSizes:
        """The sizes a config asks for over ``world`` processes."""
        return cls(
            world=world,
            tensor=config.tensor,
            pipeline=config.pipeline,
            virtual_pipeline=config.virtual_pipeline or 1,
            context=config.context,
            expert=config.expert,
            expert_tensor=config.expert_tensor or 1,
        )

    def __post_init__(self) -> None:
        model = self.tensor * self.pipeline * self.context
        if self.world % model:
            raise InputError(
                f"parallel: tensor {self.tensor} x pipeline {self.pipeline} x context {self.context} = {model} "
                f"does not divide {self.world} processes; start a multiple of {model} or change the sizes"
            )
        expert_model = self.expert_tensor * self.expert * self.pipeline
        if self.world % expert_model:
            raise InputError(
                f"parallel: expert_tensor {self.expert_tensor} x expert {self.expert} x pipeline {self.pipeline} = "
                f"{expert_model} does not divide {self.world} processes; start a multiple or change the sizes"
            )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise InputError(
                f"parallel.virtual_pipeline: {self.virtual_pipeline} chunks need pipeline >= 2, it is 1; "
                "remove virtual_pipeline"
            )

    @property
    def data(self) -> int:
        """Data-parallel size: world / (tensor x pipeline x context)."""
        return self.world // (self.tensor * self.pipeline * self.context)

    @property
    def expert_data(self) -> int:
        """Replicas of each expert shard: world / (expert_tensor x expert x pipeline)."""
        return self.world // (self.expert_tensor * self.expert * self.pipeline)

    def coordinates(self, rank: int) -> Coordinates:
        """Where ``rank`` stands in the dense and in the expert grid."""
        assert 0 <= rank < self.world
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        rest, expert_tensor = divmod(rank, self.expert_tensor)
        rest, expert = divmod(rest, self.expert)
        expert_pipeline, expert_data = divmod(rest, self.expert_data)
        assert expert_pipeline == pipeline
        return Coordinates(tensor, context, data, pipeline, expert_tensor, expert, expert_data)


@dataclass(frozen=True)
class Topology:
    """Sizes, this rank's coordinates, and its torch.distributed groups."""

    sizes: ParallelSizes
    rank: int
    at: Coordinates
    tensor: ProcessGroup
    pipeline: ProcessGroup
    data: ProcessGroup
    context: ProcessGroup
    model: ProcessGroup
    """Tensor x pipeline x context: the ranks that share one batch."""
    data_context: ProcessGroup
    """Data x context: the ranks that share one dense parameter."""
    expert: ProcessGroup
    expert_tensor: ProcessGroup
    expert_data: ProcessGroup

    @property
    def is_first_stage(self) -> bool:
        return self.at.pipeline == 0

    @property
    def is_last_stage(self) -> bool:
        return self.at.pipeline == self.sizes.pipeline - 1

    @property
    def leads_model(self) -> bool:
        """One rank of every model-parallel block, the first: it reports for all that share the batch."""
        return (self.at.tensor, self.at.context, self.at.pipeline) == (0, 0, 0)

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage with this rank's other coordinates."""
        per_stage = self.sizes.world // self.sizes.pipeline
        return self.rank % per_stage + per_stage * (self.sizes.pipeline - 1)
