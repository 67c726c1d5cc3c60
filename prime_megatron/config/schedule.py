"""Whether a learning-rate schedule fits itself and the length of the run."""

from __future__ import annotations

from prime_megatron.config.model import OptimizerConfig
from prime_megatron.errors import InputError


def check_optimizer(key: str, optimizer: OptimizerConfig) -> None:
    """Raises InputError where a schedule contradicts itself; ``key``: the optimizer's, such as "optimizer"."""
    if optimizer.min_lr > optimizer.lr:
        raise InputError(f"{key}.min_lr: {optimizer.min_lr} is above lr {optimizer.lr}; it is the floor of lr")


def warn_schedule(key: str, optimizer: OptimizerConfig, updates: int) -> list[str]:
    """What of a learning-rate schedule a run of so many updates never comes to."""
    if optimizer.warmup_steps >= updates:
        return [
            f"{key}.warmup_steps: a warm-up of {optimizer.warmup_steps} updates is as long as the run of {updates}: "
            f"{'only the last update has' if optimizer.warmup_steps == updates else 'no update comes to'} the full lr"
        ]
    return []
