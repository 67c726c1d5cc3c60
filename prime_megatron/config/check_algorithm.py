"""What single keys of prm.*, advantage.* and policy.* cannot say: whether the algorithm's settings fit each other."""

from __future__ import annotations

import difflib

from prime_megatron.config.algorithm import (
    Estimator,
    Granularity,
    ImportanceLevel,
    ImportanceMode,
    KlPlace,
    PolicyAlgorithm,
    PrmLossKind,
    PrmObjective,
    PrmReference,
    UpdateOrder,
)
from prime_megatron.config.check_kind import check_kind
from prime_megatron.config.dotted import split
from prime_megatron.config.roles import needs_prm
from prime_megatron.config.run import TrainConfig
from prime_megatron.errors import InputError

OBJECTIVES = ("ppo", "dual_clip", "gspo", "cispo")
"""Names of policy.objective, those of ``algo.objectives``."""
OUTCOME_Z_SCORE = (Estimator.grpo, Estimator.prefix_td, Estimator.spro)
"""Estimators whose outcome is compared within a prompt's responses by mean and deviation."""
SIBLING_LOSSES = (PrmLossKind.dpo, PrmLossKind.bon_acc, PrmLossKind.bon_rm)


def check_algorithm(config: TrainConfig) -> None:
    """Refuse settings of the algorithm that contradict each other.

    Raises:
        InputError: one line, with what to change.
    """
    check_kind(config)
    _check_prm(config)
    _check_advantage(config)
    _check_policy(config)


def check_objective_keys(prm: PrmObjective) -> None:
    """Refuse keys of one loss of the PRM beside another.

    Raises:
        InputError: one line, with what to change.
    """
    if prm.loss is PrmLossKind.prefix_value:
        return
    given = {
        "margin": prm.margin is not None,
        "adaptive_boundary": prm.adaptive_boundary,
        "difficulty_weights": prm.difficulty_weights,
    }
    for key in (key for key, is_set in given.items() if is_set):
        raise InputError(
            f"prm.{key}: is read by prm.loss prefix_value, and the loss is {prm.loss}; set the loss to prefix_value, "
            f"or leave {key} out"
        )


def _check_prm(config: TrainConfig) -> None:
    check_objective_keys(config.prm)
    if config.prm.softmin_temperature is not None and config.prm.granularity is not Granularity.step:
        raise InputError(
            "prm.softmin_temperature: weighs the steps of a response against each other, and prm.granularity is "
            f"{config.prm.granularity}; set granularity to step, or softmin_temperature to none"
        )
    if not needs_prm(config):
        return
    if config.prm.loss in SIBLING_LOSSES and config.prm.update is not UpdateOrder.reverse:
        raise InputError(
            f"prm.loss: {config.prm.loss} compares the scores of siblings, which are known only once all are "
            f"scored, and prm.update is {config.prm.update}; set prm.update to reverse"
        )
    if config.prm.compares_siblings and config.rollout.samples_per_prompt < 2:
        raise InputError(
            f"prm.loss: {config.prm.loss} compares siblings, and rollout.samples_per_prompt is 1; set it above 1"
        )
    if config.prm.passes > 1 and config.prm.update is UpdateOrder.none:
        raise InputError(
            f"prm.passes: {config.prm.passes} passes of a PRM that does not learn (prm.update none); "
            "set passes to 1, or update to after"
        )
    if config.prm.loss is PrmLossKind.prefix_value and config.advantage.estimator is Estimator.prime_value:
        raise InputError(
            "advantage.estimator: prime_value reads beta times the sum of log-ratios as a value, and prm.loss "
            "prefix_value teaches their mean; set estimator to prefix_td, or the loss to ce"
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
    if advantage.estimator in (Estimator.rloo, *OUTCOME_Z_SCORE) and samples < 2:
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
    _check_overlong(config)
    _check_credit(config)
    if not advantage.scale_by_deviation and advantage.estimator not in OUTCOME_Z_SCORE:
        raise InputError(
            f"advantage.scale_by_deviation: false is grpo's, and advantage.estimator is {advantage.estimator}; "
            "set estimator to grpo, prefix_td or spro, or leave the key out"
        )
    if advantage.process_weight == 0 and advantage.outcome_weight == 0:
        raise InputError("advantage: process_weight and outcome_weight are both 0: nothing would be learnt; raise one")


def _check_credit(config: TrainConfig) -> None:
    """What the estimators with a process part of their own need."""
    estimator, prm = config.advantage.estimator, config.prm
    if estimator not in (Estimator.prefix_td, Estimator.spro):
        return
    if config.advantage.process_weight == 0:
        raise InputError(
            f"advantage.process_weight: 0 leaves of advantage.estimator {estimator} what grpo is; set it above 0, or "
            "estimator to grpo"
        )
    if prm.granularity is not Granularity.token:
        raise InputError(
            f"prm.granularity: {prm.granularity} gathers rewards over steps, and advantage.estimator {estimator} reads "
            "them token by token; set granularity to token"
        )
    if prm.use_gt:
        raise InputError(
            f"prm.use_gt: puts the outcome into the last token's reward, and advantage.estimator {estimator} has the "
            "outcome already; set use_gt to false"
        )
    if estimator is Estimator.spro and config.models.prm.path is not None:
        raise InputError(
            "models.prm.path: with advantage.estimator spro the policy is its own process reward and no PRM is built; "
            "leave path out, or set estimator to rloo (models.reference is the reference of both)"
        )
    if estimator is Estimator.spro and prm.loss is not PrmLossKind.ce:
        raise InputError(
            f"prm.loss: {prm.loss} is what a PRM learns, and with advantage.estimator spro no PRM is built; leave loss "
            "out, or set estimator to rloo or prefix_td"
        )
    if estimator is Estimator.spro and prm.reference is PrmReference.policy:
        raise InputError(
            "prm.reference: policy is no reference for advantage.estimator spro, which compares the policy with it; "
            "set reference to freeze"
        )


def _check_overlong(config: TrainConfig) -> None:
    advantage, longest = config.advantage, config.rollout.sampling.max_response_tokens
    buffer = advantage.overlong_buffer
    if buffer is not None and buffer > longest:
        raise InputError(
            f"advantage.overlong_buffer: {buffer} tokens do not fit into rollout.sampling.max_response_tokens "
            f"{longest}; lower it"
        )
    if buffer is not None and advantage.outcome_weight == 0:
        raise InputError(
            "advantage.overlong_buffer: lowers outcomes, and advantage.outcome_weight 0 leaves them out; "
            "set outcome_weight above 0, or overlong_buffer to none"
        )


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
    if policy.clip_low > 1 or (policy.clip_low == 1 and policy.objective != "cispo"):
        raise InputError(f"policy.clip_low: {policy.clip_low} would clip the ratio at or below 0; keep it under 1")
    _check_objective(config)
    _check_importance(policy)


def _check_objective(config: TrainConfig) -> None:
    name, minis = config.policy.objective, config.models.policy.num_mini_batches
    if ":" in name:
        split(name, "policy.objective")
    elif name not in OBJECTIVES:
        close = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(
            f"policy.objective: {name!r} is none of {', '.join(OBJECTIVES)}{hint}, nor of the form "
            "package.module:function"
        )
    elif name != "ppo" and minis == 1:
        raise InputError(
            f"policy.objective: {name} compares with old log-probs, and there are none: with "
            "models.policy.num_mini_batches 1 every ratio is 1 by construction; set num_mini_batches above 1, or "
            "objective to ppo"
        )


def _check_importance(policy: PolicyAlgorithm) -> None:
    low, high, mode = policy.importance_floor, policy.importance_cap, policy.importance_mode
    if high is None:
        given = {
            "importance_floor": low > 0,
            "importance_level": policy.importance_level is not ImportanceLevel.token,
            "importance_mode": mode is not ImportanceMode.cap,
        }
        for key in (key for key, is_set in given.items() if is_set):
            raise InputError(
                f"policy.{key}: {getattr(policy, key)} has no effect without policy.importance_cap; set the cap, "
                f"or leave {key} out"
            )
    elif mode is ImportanceMode.cap and low > 0:
        raise InputError(
            f"policy.importance_floor: {low} is read by importance_mode mask and reject, and the mode is cap; "
            "set the mode, or importance_floor to 0"
        )
    elif mode is not ImportanceMode.cap and not low < 1 < high:
        raise InputError(
            f"policy.importance_{'floor' if low >= 1 else 'cap'}: [{low}, {high}] takes out tokens on which engine and "
            "trainer agree (ratio 1); keep importance_floor below 1 and importance_cap above it"
        )
