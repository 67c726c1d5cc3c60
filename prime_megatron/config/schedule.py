"""Whether a learning-rate schedule fits itself and the length of the run."""

from __future__ import annotations

from prime_megatron.config.model import OptimizerConfig
from prime_megatron.errors import InputError


def check_optimizer(key: str, optimizer: OptimizerConfig) -> None:
    """Raises InputError where a schedule contradicts itself; ``key``: the optimizer's, such as "optimizer"."""
    if optimizer.min_lr > optimizer.lr:
        raise InputError(f"{key}.min_lr: {optimizer.min_lr} is above lr {optimizer.lr}; it is the floor of lr")
    if optimizer.warmup_steps and optimizer.warmup_ratio:
        raise InputError(
            f"{key}.warmup_ratio: is given beside warmup_steps {optimizer.warmup_steps}; set one of them to 0"
        )


def warn_schedule(key: str, optimizer: OptimizerConfig, updates: int) -> list[str]:
    """What of a learning-rate schedule a run of so many updates never comes to."""
    warmup = optimizer.warmup(updates)
    if warmup >= updates:
        return [
            f"{key}.{'warmup_steps' if optimizer.warmup_steps else 'warmup_ratio'}: a warm-up of {warmup} updates is "
            f"as long as the run of {updates}: "
            f"{'only the last update has' if warmup == updates else 'no update comes to'} the full lr"
        ]
    return []
