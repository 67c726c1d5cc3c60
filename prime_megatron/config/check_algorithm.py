"""What single keys of prm.*, advantage.* and policy.* cannot say: whether the algorithm's settings fit each other."""

from __future__ import annotations

from prime_megatron.config.algorithm import Estimator, KlPlace, PrmLossKind, UpdateOrder
from prime_megatron.config.run import TrainConfig
from prime_megatron.errors import InputError

SIBLING_LOSSES = (PrmLossKind.dpo, PrmLossKind.bon_acc, PrmLossKind.bon_rm)


def needs_prm(config: TrainConfig) -> bool:
    """Whether the run has a PRM at all: process rewards count, or the PRM is the value function."""
    return config.advantage.process_weight > 0 or config.advantage.estimator is Estimator.prime_value


def check_algorithm(config: TrainConfig) -> None:
    """Refuse settings of the algorithm that contradict each other.

    Raises:
        InputError: one line, with what to change.
    """
    _check_prm(config)
    _check_advantage(config)
    _check_policy(config)


def _check_prm(config: TrainConfig) -> None:
    if not needs_prm(config):
        return
    if config.prm.loss in SIBLING_LOSSES:
        if config.prm.update is not UpdateOrder.reverse:
            raise InputError(
                f"prm.loss: {config.prm.loss} compares the scores of siblings, which are known only once all are "
                f"scored, and prm.update is {config.prm.update}; set prm.update to reverse"
            )
    if config.prm.loss is not PrmLossKind.ce and config.rollout.samples_per_prompt < 2:
        raise InputError(
            f"prm.loss: {config.prm.loss} compares siblings, and rollout.samples_per_prompt is 1; set it above 1"
        )
    if config.prm.passes > 1 and config.prm.update is UpdateOrder.none:
        raise InputError(
            f"prm.passes: {config.prm.passes} passes of a PRM that does not learn (prm.update none); "
            "set passes to 1, or update to after"
        )
    if config.prm.ratio_floor > 0 and config.advantage.estimator is Estimator.prime_value:
        raise InputError(
            f"prm.ratio_floor: {config.prm.ratio_floor} floors process rewards, and advantage.estimator prime_value "
            "reads the PRM as a value and has none; set ratio_floor to 0, or another estimator"
        )
    if not config.prm.step_delimiter:
        raise InputError("prm.step_delimiter: is empty; give the text that ends a reasoning step")


def _check_advantage(config: TrainConfig) -> None:
    advantage, samples = config.advantage, config.rollout.samples_per_prompt
    if advantage.estimator in (Estimator.rloo, Estimator.grpo) and samples < 2:
        raise InputError(
            f"advantage.estimator: {advantage.estimator} compares a response with its siblings, and "
            f"rollout.samples_per_prompt is {samples}; set it to at least 2"
        )
    if advantage.estimator is Estimator.prime_value and advantage.process_weight == 0:
        raise InputError(
            "advantage.estimator: prime_value takes its values from the PRM, and advantage.process_weight 0 leaves "
            "the PRM out; set process_weight above 0"
        )
    if advantage.estimator is Estimator.gae and advantage.gamma_process != advantage.gamma_outcome:
        raise InputError(
            f"advantage.estimator: gae has one value function, so one discount, and gamma_process "
            f"{advantage.gamma_process} is not gamma_outcome {advantage.gamma_outcome}; make them equal"
        )
    if advantage.process_weight == 0 and advantage.outcome_weight == 0:
        raise InputError("advantage: process_weight and outcome_weight are both 0: nothing would be learnt; raise one")


def _check_policy(config: TrainConfig) -> None:
    policy = config.policy
    if policy.kl_place is KlPlace.none and policy.kl_coef > 0:
        raise InputError(
            f"policy.kl_coef: {policy.kl_coef} has no effect with policy.kl_place none; "
            "set kl_place to reward or loss, or kl_coef to 0"
        )
    if policy.kl_place is not KlPlace.none and policy.kl_coef == 0:
        raise InputError(
            f"policy.kl_place: {policy.kl_place} with policy.kl_coef 0 runs a reference for nothing; "
            "set kl_coef above 0 or kl_place to none"
        )
    if policy.clip_low >= 1:
        raise InputError(f"policy.clip_low: {policy.clip_low} would clip the ratio at or below 0; keep it under 1")


def warn_unsolved(config: TrainConfig) -> list[str]:
    """A PRM that meets prompts which no response solves, by the loss that cannot bear them."""
    learns = needs_prm(config) and config.prm.update is not UpdateOrder.none
    if config.rollout.filter.lower > 0 or not learns or config.prm.loss is not PrmLossKind.ce:
        return []
    return [
        "rollout.filter.lower 0 keeps prompts that no response solves: where success is rare, prm.loss ce teaches the "
        "PRM to lower every sampled token; set lower above 0, or prm.loss to ce_intercept"
    ]


def warn_frozen(config: TrainConfig) -> list[str]:
    """A PRM that can never differ from its reference."""
    if needs_prm(config) and config.prm.update is UpdateOrder.none and config.models.prm.path is None:
        return [
            "prm.update none with models.prm.path unset: a PRM that starts as its own reference and never learns "
            "rewards nothing"
        ]
    return []
