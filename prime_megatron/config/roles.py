"""Which models a config speaks of."""

from __future__ import annotations

from prime_megatron.config.algorithm import Estimator, PrmKind
from prime_megatron.config.run import TrainConfig
from prime_megatron.config.teacher import TeacherMode
from prime_megatron.errors import InputError


def policy_folder_of(config: TrainConfig) -> str:
    """models.policy.path. Raises InputError where it is not set."""
    if config.models.policy.path is None:
        raise InputError("models.policy.path: is missing; give the HF folder of the model to train")
    return config.models.policy.path


def needs_prm(config: TrainConfig) -> bool:
    """Whether the run has a PRM at all: process rewards count and are neither the policy's own nor a teacher's, or the
    PRM is the value function."""
    if rewards_itself(config):
        return False
    if config.advantage.estimator is Estimator.prime_value:
        return True
    return config.advantage.process_weight > 0 and config.prm.kind is not PrmKind.teacher


def rewards_itself(config: TrainConfig) -> bool:
    """Whether the policy's own log-ratio to its reference is the process reward."""
    return config.advantage.estimator is Estimator.spro


def needs_teacher(config: TrainConfig) -> bool:
    """Whether a teacher stands in the PRM's place."""
    return config.advantage.process_weight > 0 and config.prm.kind is PrmKind.teacher


def has_told_teacher(config: TrainConfig) -> bool:
    """Whether the teacher is a copy of the policy that sees the ground truth in its prompt."""
    return needs_teacher(config) and config.prm.teacher.mode is TeacherMode.rlsd
