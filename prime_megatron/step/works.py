"""Which model works when in a step: the order in which models that are not all on the device come and go."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import TrainConfig, UpdateOrder
from prime_megatron.step.plan import OldLogprobs, StepPlan, plan_step


@dataclass(frozen=True)
class Work:
    """One model at work in a stage of the trainer's step."""

    stage: str
    """score, prm, policy, critic or reshard."""
    role: str
    learns: bool
    """It has gradients and its optimizer steps; False: its weights are read."""


def works(config: TrainConfig) -> tuple[Work, ...]:
    """The step's works in the trainer's order."""
    plan = plan_step(config)
    found = [*_score(plan), *(_prm(config) if plan.prm else ()), Work("policy", "policy", True)]
    if plan.critic:
        found.append(Work("critic", "critic", True))
    return (*found, Work("reshard", "policy", False))


def following(order: tuple[Work, ...], index: int) -> str | None:
    """The model that works next after ``order[index]``, if it is another one: it may arrive meanwhile.

    None at the step's end, where generation takes the device.
    """
    later = order[index + 1].role if index + 1 < len(order) else order[index].role
    return later if later != order[index].role else None


def _score(plan: StepPlan) -> list[Work]:
    found = []
    if plan.old_logprobs is not OldLogprobs.none:
        found.append(Work("score", "policy", False))
    if plan.reference:
        found.append(Work("score", "reference", False))
    if plan.policy_reference and not plan.shared_reference:
        separate = any(model.role == "policy_reference" for model in plan.models)
        found.append(Work("score", "policy_reference" if separate else "reference", False))
    if plan.critic:
        found.append(Work("score", "critic", False))
    if plan.teacher:
        # One that copies the policy does so beside it, in some steps.
        found.append(Work("score", "teacher", False))
    return found


def _prm(config: TrainConfig) -> list[Work]:
    learns, reads = Work("prm", "prm", True), Work("prm", "prm", False)
    match config.prm.update:
        case UpdateOrder.after:
            return [learns]
        case UpdateOrder.before:
            return [learns, reads]
        case UpdateOrder.reverse:
            return [reads, learns]
        case UpdateOrder.none:
            return [reads]
