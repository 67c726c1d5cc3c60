"""The models of a run, as the step plan needs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prime_megatron.config import Offload, TrainConfig
from prime_megatron.mcore.critic import Critic
from prime_megatron.mcore.head_prm import HeadPrm
from prime_megatron.mcore.host_memory import HostPool
from prime_megatron.mcore.offload import KINDS
from prime_megatron.mcore.role import Role
from prime_megatron.parallel.topology import Topology
from prime_megatron.step.plan import Model, StepPlan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Roles:
    """The models of the step plan; None where the plan has no such pass."""

    policy: Role
    prm: Role | None
    reference: Role | None
    """The process reward's frozen reference."""
    policy_reference: Role | None
    """The policy's, for its KL term; the same object where both are one model."""
    critic: Critic | None = None
    """The value model of estimator gae."""
    teacher: Role | None = None
    """Frozen, in the PRM's place; of rlsd a copy of the policy."""

    @property
    def learning(self) -> list[Role]:
        """The ones with an optimizer, which a checkpoint holds."""
        return [role for role in self.distinct if role.optimizer is not None]

    @property
    def distinct(self) -> list[Role]:
        """Every model once."""
        roles = [self.policy, self.prm, self.reference, self.policy_reference, self.critic, self.teacher]
        return list({id(role): role for role in roles if role is not None}.values())


def build_roles(config: TrainConfig, topology: Topology, plan: StepPlan, pool: HostPool) -> Roles:
    """Load the models that the plan names, one after the other; where models take turns on the device, each leaves it
    for the next."""
    roles: dict[str, Role] = {}
    for model in plan.models:
        role = roles[model.role] = _build(config, topology, model, pool)
        if config.parallel.offload is not Offload.none:
            role.memory.reserve()
        if config.parallel.offload is Offload.phases:
            role.memory.send(KINDS)
            role.memory.settle()
    critic = roles.get("critic")
    assert critic is None or isinstance(critic, Critic)
    return Roles(
        policy=roles["policy"],
        prm=roles.get("prm"),
        reference=roles.get("reference"),
        # The plan names one model where the PRM's reference serves the KL term, too.
        policy_reference=roles.get("policy_reference", roles.get("reference")) if plan.policy_reference else None,
        critic=critic,
        teacher=roles.get("teacher"),
    )


def _build(config: TrainConfig, topology: Topology, model: Model, pool: HostPool) -> Role:
    dtype = DTYPES[config.models.dtype]
    settings = {"policy": config.models.policy, "prm": config.models.prm, "critic": config.models.critic}
    optimizer, updates = None, 1
    if model.trained:
        optimizer = settings[model.role].optimizer
        passes = config.prm.passes if model.role == "prm" else 1
        updates = config.run.steps * settings[model.role].num_mini_batches * passes
    if model.role == "prm" and model.value_head:
        return HeadPrm(
            model.folder,
            topology,
            config.parallel,
            dtype=dtype,
            optimizer=optimizer,
            total_updates=updates,
            layers=config.models.layers,
            pool=pool,
        )
    if model.role == "critic":
        assert optimizer is not None
        return Critic(
            model.folder,
            topology,
            config.parallel,
            dtype=dtype,
            optimizer=optimizer,
            total_updates=updates,
            layers=config.models.layers,
            pool=pool,
        )
    return Role(
        model.role,
        model.folder,
        topology,
        config.parallel,
        dtype=dtype,
        optimizer=optimizer,
        total_updates=updates,
        logprob_impl=config.models.logprob_impl,
        layers=config.models.layers,
        pool=pool,
    )
