"""The groups of a step, laid out for every role on this data-parallel rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from prime_megatron.config import TrainConfig
from prime_megatron.data.batch import make_batch, plan_groups, select
from prime_megatron.data.packing import BatchPlan
from prime_megatron.device import current_device
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import Group, MiniBatch, PackedSequences, RolloutBatch


@dataclass(frozen=True)
class StepBatch:
    """One step's sequences and the mini-batches in which each role walks through them."""

    rollout: RolloutBatch
    policy: tuple[MiniBatch, ...]
    prm: tuple[MiniBatch, ...]

    @property
    def micro(self) -> list[PackedSequences]:
        """All micro-batches, in the policy's order: what scoring walks through."""
        return [micro for mini in self.policy for micro in mini.micro]

    @property
    def num_local_tokens(self) -> int:
        """Tokens on this rank, prompts included."""
        return self.rollout.tokens_T.numel()


class Batcher:
    """Turns gathered groups into this rank's batch; pure given the groups, so ranks agree without a word."""

    def __init__(self, config: TrainConfig, topology: Topology, step_end_table_V: Tensor | None) -> None:
        self.config = config
        self.topology = topology
        self.step_end_table_V = step_end_table_V

    def __call__(self, groups: Sequence[Group]) -> StepBatch:
        """Balance, pack, and move to the device."""
        models, sizes = self.config.models, self.topology.sizes
        plan = plan_groups(
            groups,
            num_mini_batches=math.lcm(models.policy.num_mini_batches, models.prm.num_mini_batches),
            dp_size=sizes.data,
            max_tokens=self.config.packing.max_tokens,
            max_sequences=self.config.packing.max_sequences,
            micro_multiple=sizes.pipeline if sizes.virtual_pipeline > 1 else 1,
        )
        batch = to_device(make_batch(groups, plan, self.topology.at.data, self.step_end_table_V))
        return StepBatch(
            rollout=batch,
            policy=self._mini_batches(batch, plan, models.policy.num_mini_batches),
            prm=self._mini_batches(batch, plan, models.prm.num_mini_batches),
        )

    def _mini_batches(self, batch: RolloutBatch, plan: BatchPlan, count: int) -> tuple[MiniBatch, ...]:
        return tuple(
            MiniBatch(tuple(self._pack(batch, micro) for micro in mini.micro), mini.num_tokens, mini.num_sequences)
            for mini in plan.micro_batches(self.topology.at.data, count)
        )

    def _pack(self, batch: RolloutBatch, indices: Sequence[int]) -> PackedSequences:
        return pack(batch, indices, self.topology, padded=self.config.packing.padded)


def pack(batch: RolloutBatch, indices: Sequence[int], topology: Topology, *, padded: bool) -> PackedSequences:
    """A micro-batch with the padding that the layout needs."""
    context, tensor = topology.sizes.context, topology.sizes.tensor
    return select(
        batch,
        indices,
        padded=padded,
        sequence_multiple=2 * context if context > 1 else 1,
        total_multiple=tensor * (2 * context if context > 1 else 1),
    )


def to_device(batch: RolloutBatch) -> RolloutBatch:
    """The batch's tensors on this rank's device."""
    device = current_device()
    moved = {
        field.name: value.to(device, non_blocking=True)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **moved)
