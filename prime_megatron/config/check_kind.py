"""What fits which kind of PRM: an implicit one, one with a head, a teacher in its place."""

from __future__ import annotations

from prime_megatron.config.algorithm import (
    Estimator,
    Granularity,
    KlPlace,
    PrmKind,
    PrmLossKind,
    PrmReference,
    UpdateOrder,
)
from prime_megatron.config.roles import has_told_teacher, needs_prm, needs_teacher
from prime_megatron.config.run import TrainConfig
from prime_megatron.config.teacher import TRUTH, TeacherAlgorithm, TeacherMode
from prime_megatron.errors import InputError

HEAD_LOSSES = (PrmLossKind.prefix_ce, PrmLossKind.last_ce)
OF_LOG_RATIOS = (Estimator.prime_value, Estimator.prefix_td, Estimator.spro)


def check_kind(config: TrainConfig) -> None:
    """Refuse settings that the kind of PRM does not have.

    Raises:
        InputError: one line, with what to change.
    """
    kind, prm = config.prm.kind, config.prm
    if kind is not PrmKind.implicit and config.advantage.estimator in OF_LOG_RATIOS:
        raise InputError(
            f"advantage.estimator: {config.advantage.estimator} reads log-ratios to a reference, and prm.kind is "
            f"{kind}; set kind to implicit, or another estimator"
        )
    if not needs_prm(config) and not needs_teacher(config):
        return
    if kind is not PrmKind.teacher:
        _check_unread_teacher(config)
    if kind is PrmKind.implicit:
        if prm.loss in HEAD_LOSSES:
            raise InputError(
                f"prm.loss: {prm.loss} is of a head's values, and prm.kind implicit has log-ratios; set kind to head, "
                "or loss to ce"
            )
        return
    _check_no_log_ratio(config)
    if kind is PrmKind.head and prm.loss not in HEAD_LOSSES:
        raise InputError(
            f"prm.loss: {prm.loss} is of log-ratios, and prm.kind head has none; set loss to prefix_ce or last_ce"
        )
    if kind is PrmKind.teacher:
        _check_teacher(config)


def _check_unread_teacher(config: TrainConfig) -> None:
    kind = config.prm.kind
    if config.models.teacher is not None:
        raise InputError(
            f"models.teacher: is read by prm.kind teacher only, and the kind is {kind}; set kind to teacher, or leave "
            "the key out"
        )
    if config.prm.teacher != TeacherAlgorithm():
        raise InputError(
            f"prm.teacher: is read by prm.kind teacher only, and the kind is {kind}; set kind to teacher, or leave the "
            "section out"
        )


def _check_no_log_ratio(config: TrainConfig) -> None:
    """What divides by a reference has nothing to divide where there is none."""
    prm = config.prm
    if prm.ratio_floor > 0:
        raise InputError(
            f"prm.ratio_floor: {prm.ratio_floor} floors the log-ratio of an implicit PRM, and prm.kind is {prm.kind}; "
            "set ratio_floor to 0"
        )
    if prm.reference is PrmReference.policy:
        raise InputError(
            f"prm.reference: policy is an implicit PRM's denominator, and prm.kind {prm.kind} has none; leave it out"
        )
    if prm.health.every > 0:
        raise InputError(
            f"prm.health.every: watches the log-ratios of an implicit PRM, and prm.kind is {prm.kind}; set every to 0"
        )
    if config.models.reference is not None:
        raise InputError(
            f"models.reference: is an implicit PRM's denominator, and prm.kind {prm.kind} has none; leave it out"
        )


def _check_teacher(config: TrainConfig) -> None:
    prm = config.prm
    never = {
        "passes": prm.passes > 1,
        "update": prm.update in (UpdateOrder.before, UpdateOrder.reverse),
        "loss": prm.loss is not PrmLossKind.ce,
    }
    for key in (key for key, is_set in never.items() if is_set):
        raise InputError(
            f"prm.{key}: {getattr(prm, key)} is of a PRM that learns, and a teacher (prm.kind) never does; leave "
            f"{key} out"
        )
    shaped = {
        "granularity": prm.granularity is not Granularity.token,
        "smoothing_lambda": prm.smoothing_lambda > 0,
        "use_gt": prm.use_gt,
        "softmin_temperature": prm.softmin_temperature is not None,
    }
    for key in (key for key, is_set in shaped.items() if is_set):
        raise InputError(
            f"prm.{key}: {getattr(prm, key)} shapes process rewards, and a teacher's judgement (prm.kind) is added to "
            f"the advantage as it is; leave {key} out"
        )
    if config.models.prm.path is not None:
        raise InputError("models.prm.path: a teacher (prm.kind) stands in the PRM's place; name it as models.teacher")
    if has_told_teacher(config):
        _check_rlsd(config)
        return
    if config.models.teacher is None:
        raise InputError(
            "models.teacher: is missing, and prm.kind is teacher; give the HF folder of a model with the policy's "
            "tokenizer"
        )
    if prm.teacher.mode is TeacherMode.ratio and prm.teacher.late_discount != TeacherAlgorithm().late_discount:
        raise InputError(
            "prm.teacher.late_discount: is read by mode iw_opd, and prm.teacher.mode is ratio; set the mode, or leave "
            "late_discount out"
        )


def _check_rlsd(config: TrainConfig) -> None:
    advantage = config.advantage
    if config.models.teacher is not None:
        raise InputError(
            "models.teacher: prm.teacher.mode rlsd copies the policy; leave the key out, or set mode to ratio or iw_opd"
        )
    if advantage.outcome_weight == 0:
        raise InputError(
            "advantage.outcome_weight: prm.teacher.mode rlsd weighs the outcome's advantage, and 0 leaves none; raise "
            "it, or set mode to ratio"
        )
    if advantage.process_weight != 1:
        raise InputError(
            f"advantage.process_weight: {advantage.process_weight} is not read by prm.teacher.mode rlsd, whose share "
            "is prm.teacher.mix; set it to 1"
        )
    if advantage.whiten or advantage.estimator is Estimator.reinforce_pp:
        raise InputError(
            "advantage.whiten: moves the sign of advantages, which prm.teacher.mode rlsd leaves to the outcome; set "
            "whiten to false (and the estimator to another than reinforce++)"
        )
    if config.policy.kl_place is KlPlace.reward:
        raise InputError(
            "policy.kl_place: reward moves the sign of advantages, which prm.teacher.mode rlsd leaves to the outcome; "
            "set it to loss or none"
        )
    if TRUTH not in config.prm.teacher.truth_text:
        raise InputError(f"prm.teacher.truth_text: has no {TRUTH}, for which the ground truth stands; write it in")
