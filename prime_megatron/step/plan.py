"""What one step must run and which models that takes, decided from the config alone; everything that is exact to skip
is skipped.

F is one forward pass over the step's kept tokens; a backward counts 2 F.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from prime_megatron.config import Estimator, KlPlace, PrmKind, PrmReference, TrainConfig, UpdateOrder
from prime_megatron.config.roles import (
    has_told_teacher,
    needs_prm,
    needs_teacher,
    policy_folder_of,
    rewards_itself,
)
from prime_megatron.errors import InputError


class OldLogprobs(StrEnum):
    """Which tokens need the policy's log-probs from before its update."""

    none = "none"
    later = "later"
    """Those of the second and later mini-batches: the first one's ratio is 1 by construction."""
    all = "all"


@dataclass(frozen=True)
class Pass:
    """A pass over the batch: who runs it, what, its cost in F, and why it is needed or why not."""

    role: str
    what: str
    forwards: float
    why: str


@dataclass(frozen=True)
class Model:
    """A model that the run builds."""

    role: str
    """policy, prm, teacher, reference, policy_reference or critic."""
    folder: str
    """HF folder that it starts from."""
    trained: bool
    """It has gradients and an optimizer; False: frozen."""
    why: str
    """What it is needed for."""
    value_head: bool = False
    """It predicts a value in place of the vocabulary."""


@dataclass(frozen=True)
class StepPlan:
    """The passes of a step, and the models."""

    old_logprobs: OldLogprobs
    reference: bool
    """The frozen reference of the process reward scores the batch."""
    policy_reference: bool
    """The policy's KL term needs a reference's log-probs."""
    shared_reference: bool
    """One pass of the frozen model serves the PRM and the KL term."""
    prm: bool
    """There is a PRM at all."""
    rewards_itself: bool
    """The policy against the reference is the process reward, in the PRM's place."""
    critic: bool
    passes: tuple[Pass, ...]
    models: tuple[Model, ...]
    """Every model once, the policy first. Where the policy's KL term compares with the PRM's reference, that stands for
    both."""
    teacher: bool = False
    """A teacher scores the batch in the PRM's place."""

    @property
    def forwards(self) -> float:
        """Cost of the step in F."""
        return sum(item.forwards for item in self.passes)


def plan_step(config: TrainConfig, *, taught: bool = True) -> StepPlan:
    """Decide the passes and the models of a step. Pure; reads no model.

    taught: False for a step after prm.teacher.mix_steps, in which an rlsd teacher has no say.

    Raises:
        InputError: models.policy.path is not set.
    """
    prm, itself = needs_prm(config), rewards_itself(config)
    kl = config.policy.kl_place is not KlPlace.none and config.policy.kl_coef > 0.0
    from_policy = prm and config.prm.reference is PrmReference.policy
    reference = itself or (prm and config.prm.kind is PrmKind.implicit and not from_policy)
    teacher = taught and needs_teacher(config)
    # The KL term compares at the sampling temperature, as the policy's own reward does; the PRM's reference at 1.
    alike = itself or config.rollout.sampling.temperature == 1.0
    shared = kl and reference and alike and _reference_folder(config) == config.models.policy.path
    whole = from_policy or itself or teacher or (kl and config.policy.kl_place is KlPlace.reward)
    old = _old_logprobs(config, whole=whole)
    critic = config.advantage.estimator is Estimator.gae
    passes = [*_score_passes(config, old, reference=reference, from_policy=from_policy, kl=kl, shared=shared)]
    if teacher:
        passes.append(Pass("teacher", "log-probs", 1.0, _why_teacher(config)))
    if prm:
        passes += _prm_passes(config) + _health_passes(config)
    if critic:
        passes += [
            Pass("critic", "values", 1.0, "GAE needs a value per token"),
            Pass("critic", "update", 3.0, "learns"),
        ]
    passes.append(Pass("policy", "update", 3.0, "forward and backward of every mini-batch"))
    models = _models(config, prm=prm, reference=reference, kl=kl, critic=critic)
    return StepPlan(old, reference, kl, shared, prm, itself, critic, tuple(passes), models, teacher)


def _reference_folder(config: TrainConfig) -> str:
    return config.models.reference or config.models.prm.path or policy_folder_of(config)


def _models(config: TrainConfig, *, prm: bool, reference: bool, kl: bool, critic: bool) -> tuple[Model, ...]:
    policy = policy_folder_of(config)
    models = [Model("policy", policy, True, "learns to answer")]
    if prm:
        learns = config.prm.update is not UpdateOrder.none
        why = "scores every token and learns from outcomes" if learns else "scores every token; prm.update is none"
        head = config.prm.kind is PrmKind.head
        models.append(Model("prm", config.models.prm.path or policy, learns, why, head))
    if needs_teacher(config):
        told = has_told_teacher(config)
        why = f"copies the policy every {config.prm.teacher.copy_every} steps" if told else "judges every token"
        models.append(Model("teacher", policy if told else _teacher_folder(config), False, why))
    folder = _reference_folder(config)
    serves_both = reference and kl and folder == policy
    if reference:
        why = _why_reference(config) + (", and the KL term's reference" if serves_both else "")
        models.append(Model("reference", folder, False, why))
    if kl and not serves_both:
        models.append(Model("policy_reference", policy, False, "KL against the start"))
    if critic:
        folder = config.models.critic.path or policy
        models.append(Model("critic", folder, True, "GAE needs a value per token", value_head=True))
    return tuple(models)


def _teacher_folder(config: TrainConfig) -> str:
    if config.models.teacher is None:
        raise InputError("models.teacher: is missing, and prm.kind is teacher; give its HF folder")
    return config.models.teacher


def _why_teacher(config: TrainConfig) -> str:
    if not has_told_teacher(config):
        return "its judgement against the policy's own"
    steps = config.prm.teacher.mix_steps
    return f"its judgement; prompts are longer by the truth; in the first {steps} steps (prm.teacher.mix_steps)"


def _why_reference(config: TrainConfig) -> str:
    return "denominator of the policy's own reward" if rewards_itself(config) else "denominator of the implicit reward"


def _old_logprobs(config: TrainConfig, *, whole: bool) -> OldLogprobs:
    if whole or config.policy.importance_cap is not None:
        return OldLogprobs.all
    return OldLogprobs.later if config.models.policy.num_mini_batches > 1 else OldLogprobs.none


def _score_passes(
    config: TrainConfig, old: OldLogprobs, *, reference: bool, from_policy: bool, kl: bool, shared: bool
) -> list[Pass]:
    minis = config.models.policy.num_mini_batches
    passes = {
        OldLogprobs.none: Pass("policy", "old log-probs", 0.0, "one mini-batch: its ratio is 1 by construction"),
        OldLogprobs.later: Pass(
            "policy", "old log-probs", (minis - 1) / minis, "the first mini-batch's ratio is 1 by construction"
        ),
        OldLogprobs.all: Pass("policy", "old log-probs", 1.0, _why_all(config, from_policy)),
    }
    result = [passes[old]]
    if reference:
        result.append(Pass("reference", "log-probs", 1.0, f"{_why_reference(config)}, once per step"))
    if kl:
        cost, why = (0.0, "the reward's reference is the same model") if shared else (1.0, "KL against the start")
        result.append(Pass("policy reference", "log-probs", cost, why))
    return result


def _why_all(config: TrainConfig, from_policy: bool) -> str:
    if from_policy:
        return "the PRM's reference"
    if rewards_itself(config):
        return "the policy's own process reward"
    if needs_teacher(config):
        return "what the teacher is compared with"
    if config.policy.importance_cap is not None:
        return "importance weights against the engine"
    return "KL enters the reward"


def _health_passes(config: TrainConfig) -> list[Pass]:
    """What prm.health costs a step in the mean, where the held-out responses are those of the first steps."""
    health = config.prm.health
    if not health.every:
        return []
    if config.eval.prm_rows:
        why = f"PRM and reference on eval.prm_rows, every {health.every}; not counted"
        return [Pass("prm", "health check", 0.0, why)]
    why = f"PRM and reference on the responses of {health.steps} steps, every {health.every}"
    return [Pass("prm", "health check", 2.0 * health.steps / health.every, why)]


def _prm_passes(config: TrainConfig) -> list[Pass]:
    why = "forward and backward of every mini-batch"
    times = config.prm.passes
    update = Pass("prm", "update", 3.0 * times, why if times == 1 else f"{why}, {times} times (prm.passes)")
    own = "those of the update's own forward" if times == 1 else "those of the first pass's own forward"
    match config.prm.update:
        case UpdateOrder.after:
            return [update, Pass("prm", "scores", 0.0, own)]
        case UpdateOrder.before:
            return [update, Pass("prm", "scores", 1.0, "with the updated weights")]
        case UpdateOrder.reverse:
            return [Pass("prm", "scores", 1.0, "before the update, shared among siblings"), update]
        case UpdateOrder.none:
            return [Pass("prm", "scores", 1.0, "a frozen PRM")]
