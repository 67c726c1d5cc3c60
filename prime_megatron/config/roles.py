"""Which models a config speaks of."""

from __future__ import annotations

from prime_megatron.config.algorithm import Estimator
from prime_megatron.config.run import TrainConfig
from prime_megatron.errors import InputError


def policy_folder_of(config: TrainConfig) -> str:
    """models.policy.path. Raises InputError where it is not set."""
    if config.models.policy.path is None:
        raise InputError("models.policy.path: is missing; give the HF folder of the model to train")
    return config.models.policy.path


def needs_prm(config: TrainConfig) -> bool:
    """Whether the run has a PRM at all: process rewards count and are not the policy's own, or the PRM is the value
    function."""
    if rewards_itself(config):
        return False
    return config.advantage.process_weight > 0 or config.advantage.estimator is Estimator.prime_value


def rewards_itself(config: TrainConfig) -> bool:
    """Whether the policy's own log-ratio to its reference is the process reward."""
    return config.advantage.estimator is Estimator.spro
