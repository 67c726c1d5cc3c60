"""The models of a run, as the step plan needs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prime_megatron.config import OptimizerConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.mcore.critic import Critic
from prime_megatron.mcore.role import Role
from prime_megatron.parallel.topology import Topology
from prime_megatron.step.plan import StepPlan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Roles:
    """The models of the step plan; None where the plan has no such pass."""

    policy: Role
    prm: Role | None
    reference: Role | None
    """The PRM's frozen reference."""
    policy_reference: Role | None
    """The policy's, for its KL term; the same object where both are one model."""
    critic: Critic | None = None
    """The value model of estimator gae."""

    @property
    def learning(self) -> list[Role]:
        """The ones with an optimizer, which a checkpoint holds."""
        return [role for role in self.distinct if role.optimizer is not None]

    @property
    def distinct(self) -> list[Role]:
        """Every model once."""
        roles = [self.policy, self.prm, self.reference, self.policy_reference, self.critic]
        return list({id(role): role for role in roles if role is not None}.values())


def build_roles(config: TrainConfig, topology: Topology, plan: StepPlan) -> Roles:
    """Load the models that the plan needs, each once. Raises InputError: transformers, and so the engine, would read
    another model in one of the folders."""
    policy_folder = policy_folder_of(config)
    prm_folder = config.models.prm.path or policy_folder
    reference_folder = config.models.reference or prm_folder

    def role(name: str, folder: str, optimizer: OptimizerConfig | None, updates: int) -> Role:
        return Role(
            name,
            folder,
            topology,
            config.parallel,
            dtype=DTYPES[config.models.dtype],
            optimizer=optimizer,
            total_updates=updates,
            logprob_impl=config.models.logprob_impl,
        )

    policy, prm = config.models.policy, config.models.prm
    frozen: dict[str, Role] = {}
    if plan.reference:
        frozen[reference_folder] = role("reference", reference_folder, None, 1)
    if plan.policy_reference and policy_folder not in frozen:
        frozen[policy_folder] = role("policy_reference", policy_folder, None, 1)
    return Roles(
        policy=role("policy", policy_folder, policy.optimizer, config.run.steps * policy.num_mini_batches),
        prm=role("prm", prm_folder, prm.optimizer, config.run.steps * prm.num_mini_batches) if plan.prm else None,
        reference=frozen[reference_folder] if plan.reference else None,
        policy_reference=frozen[policy_folder] if plan.policy_reference else None,
        critic=_critic(config, topology) if plan.critic else None,
    )


def _critic(config: TrainConfig, topology: Topology) -> Critic:
    critic = config.models.critic
    return Critic(
        critic.path or policy_folder_of(config),
        topology,
        config.parallel,
        dtype=DTYPES[config.models.dtype],
        optimizer=critic.optimizer,
        total_updates=config.run.steps * critic.num_mini_batches,
    )


def policy_folder_of(config: TrainConfig) -> str:
    """models.policy.path. Raises InputError where it is not set."""
    if config.models.policy.path is None:
        raise InputError("models.policy.path: is required; give the HF folder of the model to train")
    return config.models.policy.path
