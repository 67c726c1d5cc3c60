"""The groups of a step, laid out for every role on this data-parallel rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from prime_megatron.config import Estimator, PackingConfig, TrainConfig
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
    critic: tuple[MiniBatch, ...]
    """Of estimator gae; unused by the others."""

    @property
    def num_local_tokens(self) -> int:
        """Tokens on this rank, prompts included."""
        return self.rollout.tokens_T.numel()


class Batcher:
    """Turns gathered groups into this rank's batch; pure given the groups, so ranks agree without a word.

    Args:
        topology: which part is this rank's, and the padding its layout needs.
        packing: limits of a micro-batch.
        policy_minis, prm_minis, critic_minis: optimizer steps of the roles.
        step_end_table_V: bool [V], tokens that close a reasoning step; None where no one asks.
    """

    def __init__(
        self,
        topology: Topology,
        packing: PackingConfig,
        *,
        policy_minis: int = 1,
        prm_minis: int = 1,
        critic_minis: int = 1,
        step_end_table_V: Tensor | None = None,
    ) -> None:
        self.topology = topology
        self.packing = packing
        self.policy_minis = policy_minis
        self.prm_minis = prm_minis
        self.critic_minis = critic_minis
        self.step_end_table_V = step_end_table_V

    @classmethod
    def from_config(cls, config: TrainConfig, topology: Topology, step_end_table_V: Tensor | None) -> Batcher:
        """The batcher of a PRIME run."""
        has_critic = config.advantage.estimator is Estimator.gae
        return cls(
            topology,
            config.packing,
            policy_minis=config.models.policy.num_mini_batches,
            prm_minis=config.models.prm.num_mini_batches,
            critic_minis=config.models.critic.num_mini_batches if has_critic else 1,
            step_end_table_V=step_end_table_V,
        )

    def __call__(self, groups: Sequence[Group]) -> StepBatch:
        """Balance, pack, and move to the device.

        A batch with fewer groups than mini-batches goes in fewer: their largest divisor that leaves none empty.
        """
        plan = self._plan(groups)
        batch = to_device(make_batch(groups, plan, self.topology.at.data, self.step_end_table_V))
        return StepBatch(
            rollout=batch,
            policy=self._mini_batches(batch, plan, self.policy_minis),
            prm=self._mini_batches(batch, plan, self.prm_minis),
            critic=self._mini_batches(batch, plan, self.critic_minis),
        )

    def told(self, groups: Sequence[Group]) -> tuple[RolloutBatch, tuple[PackedSequences, ...]]:
        """The same groups behind prompts that hold the ground truth, every sequence in its place among this rank's, and
        the micro-batches that score them."""
        plan = self._plan(groups)
        told = [
            dataclasses.replace(group, prompt=dataclasses.replace(group.prompt, token_ids=group.prompt.told_ids))
            for group in groups
        ]
        lengths = [[len(group.prompt.token_ids) + len(one.token_ids) for one in group.samples] for group in told]
        here = self.topology.at.data
        batch = to_device(make_batch(told, plan, here))
        return batch, tuple(self._pack(batch, micro) for micro in plan.whole(lengths).micro[here])

    def _plan(self, groups: Sequence[Group]) -> BatchPlan:
        sizes = self.topology.sizes
        finest = math.lcm(self.policy_minis, self.prm_minis, self.critic_minis)
        finest = max(count for count in range(1, min(finest, len(groups)) + 1) if finest % count == 0)
        return plan_groups(
            groups,
            num_mini_batches=finest,
            dp_size=sizes.data,
            max_tokens=self.packing.max_tokens,
            max_sequences=self.packing.max_sequences,
            micro_multiple=sizes.pipeline if sizes.virtual_pipeline > 1 else 1,
        )

    def _mini_batches(self, batch: RolloutBatch, plan: BatchPlan, count: int) -> tuple[MiniBatch, ...]:
        count = math.gcd(count, len(plan.minis))
        return tuple(
            MiniBatch(tuple(self._pack(batch, micro) for micro in mini.micro), mini.num_tokens, mini.num_sequences)
            for mini in plan.micro_batches(self.topology.at.data, count)
        )

    def _pack(self, batch: RolloutBatch, indices: Sequence[int]) -> PackedSequences:
        """A micro-batch with the padding that the layout needs."""
        sizes = self.topology.sizes
        chunks = 2 * sizes.context if sizes.context > 1 else 1
        return select(
            batch,
            indices,
            padded=self.packing.padded,
            sequence_multiple=chunks,
            total_multiple=chunks * sizes.tensor,
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
