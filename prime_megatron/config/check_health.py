"""What single keys of prm.health and prm.on_collapse cannot say: whether there is a PRM to watch, and what would be
left without it."""

from __future__ import annotations

import math

from prime_megatron.config.algorithm import Estimator, UpdateOrder
from prime_megatron.config.health import CollapseAction
from prime_megatron.config.roles import needs_prm
from prime_megatron.config.run import TrainConfig
from prime_megatron.errors import InputError


def check_health(config: TrainConfig) -> None:
    """Refuse a watch over nothing, and an action that cannot be taken.

    Raises:
        InputError: one line, with what to change.
    """
    prm, action = config.prm, config.prm.on_collapse
    if not prm.health.every:
        if action is not CollapseAction.warn:
            raise InputError(
                f"prm.on_collapse: {action} waits for an alarm of prm.health, which is off; set prm.health.every, or "
                "on_collapse to warn"
            )
        return
    if not needs_prm(config):
        raise InputError("prm.health.every: this run has no PRM to check (advantage.process_weight 0); set every to 0")
    if prm.update is UpdateOrder.none:
        raise InputError(
            "prm.health.every: a PRM that never learns (prm.update none) is its own frozen copy; set every to 0"
        )
    if not config.eval.prm_rows and config.rollout.samples_per_prompt < 2:
        raise InputError(
            "prm.health.every: pairs are made of a prompt's responses, and rollout.samples_per_prompt is 1; set it "
            "above 1, or name labelled responses in eval.prm_rows"
        )
    if action is CollapseAction.outcome_only:
        _check_outcome_only(config)


def _check_outcome_only(config: TrainConfig) -> None:
    advantage = config.advantage
    if advantage.outcome_weight == 0:
        raise InputError(
            "prm.on_collapse: outcome_only would leave no advantage, for advantage.outcome_weight is 0; set that above "
            "0, or on_collapse to freeze or warn"
        )
    if advantage.estimator is Estimator.prime_value:
        raise InputError(
            "prm.on_collapse: outcome_only takes the PRM out of the advantage, and advantage.estimator prime_value "
            "takes its values from it; set on_collapse to freeze or warn, or another estimator"
        )


def warn_health(config: TrainConfig, data_size: int) -> list[str]:
    """Checks that never come, and a margin that chance alone crosses."""
    health, rollout, steps = config.prm.health, config.rollout, config.run.steps
    if not health.every:
        return []
    held_out = 0 if config.eval.prm_rows else health.steps
    lines = []
    if steps // health.every * health.every <= held_out:
        lines.append(
            f"prm.health: no check falls into the {steps} steps of the run (every {health.every}, the responses of the "
            f"first {held_out} held out)"
        )
    prompts = held_out * rollout.prompts_per_step
    deviation = pair_accuracy_deviation(prompts, rollout.samples_per_prompt)
    if 0.0 <= health.margin < 2.0 * deviation:
        lines.append(
            f"prm.health.margin {health.margin}: the pair accuracy of {prompts} prompts has a deviation of "
            f"{deviation:.2f} by chance; raise prm.health.steps, or margin to {2 * deviation:.2f}"
        )
    return lines


def pair_accuracy_deviation(num_prompts: int, samples: int) -> float:
    """Standard deviation of the pair accuracy of scores that know nothing: prompts with half of their responses right.

    Of one prompt with m right and n wrong responses the share of ordered pairs is Mann and Whitney's U / (m n), of
    variance (m + n + 1) / (12 m n). 0 for no prompts.
    """
    right = samples // 2
    if not num_prompts or not right:
        return 0.0
    return math.sqrt((samples + 1) / (12 * right * (samples - right)) / num_prompts)
