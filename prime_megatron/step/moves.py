"""What a rank copies between device and host memory in one step, as parallel.offload has it, in order."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import Offload, TrainConfig
from prime_megatron.step.plan import plan_step
from prime_megatron.step.works import Work, following, works

WEIGHTS, OPTIMIZER_STATE, EVERYTHING = "weights", "optimizer state", "weights and optimizer state"

_READS = {"score": "scores", "prm": "scores", "reshard": "reshard"}


@dataclass(frozen=True)
class Move:
    """One copy. Gradients are never copied, nor what the host has as it is."""

    role: str
    what: str
    to: str
    """device or host."""
    beside: str
    """What the device computes meanwhile; empty: it waits."""


def moves(config: TrainConfig) -> list[Move]:
    """Of a step after the first one: frozen models have been copied to the host before."""
    if config.parallel.offload is Offload.none:
        return []
    if config.parallel.offload is Offload.generation:
        return _around_generation(config)
    return _in_turns(works(config))


def _around_generation(config: TrainConfig) -> list[Move]:
    models = plan_step(config).models
    back = [Move(model.role, EVERYTHING if model.trained else WEIGHTS, "device", "") for model in models]
    away = [Move(model.role, EVERYTHING, "host", "") for model in models if model.trained and model.role != "policy"]
    return [*back, Move("policy", OPTIMIZER_STATE, "host", ""), *away, Move("policy", WEIGHTS, "host", "")]


def _in_turns(order: tuple[Work, ...]) -> list[Move]:
    """A model's weights are on the device from the work before its own, where that is another's, until another
    model works; they are copied back where they were updated."""
    found: list[Move] = []
    here: set[str] = set()
    changed: set[str] = set()
    for index, work in enumerate(order):
        upcoming = following(order, index)
        told = f"{work.role} {'update' if work.learns else _READS[work.stage]}"
        for role in sorted(here - {work.role, upcoming}):
            if role in changed:
                found.append(Move(role, WEIGHTS, "host", told))
        here &= {work.role, upcoming or work.role}
        changed &= here
        for role, beside in ((work.role, ""), (upcoming, told)):
            if role is not None and role not in here:
                found.append(Move(role, WEIGHTS, "device", beside))
                here.add(role)
        if work.learns:
            found.append(Move(work.role, OPTIMIZER_STATE, "device", "every optimizer step, by pieces"))
            found.append(Move(work.role, OPTIMIZER_STATE, "host", "every optimizer step, by pieces"))
            changed.add(work.role)
    found += [Move(role, WEIGHTS, "host", "") for role in sorted(here & changed)]
    return found
