"""Settings that are allowed and perhaps not meant, one line each."""

from __future__ import annotations

from collections.abc import Callable

from prime_megatron.config.algorithm import Estimator, PrmKind, PrmLossKind, UpdateOrder
from prime_megatron.config.check_health import warn_health
from prime_megatron.config.roles import needs_prm
from prime_megatron.config.run import TrainConfig
from prime_megatron.config.schedule import warn_schedule

RARE_SUCCESS = 0.1
"""Mean outcome of a step's responses below which success is rare."""


def _warn_sampling(config: TrainConfig, data_size: int) -> list[str]:
    if config.rollout.sampling.top_p == 1:
        return []
    return [
        f"rollout.sampling.top_p {config.rollout.sampling.top_p}: the engine draws from a cut distribution, "
        "the trainer's log-probs are those of the whole one"
    ]


def _warn_filter(config: TrainConfig, data_size: int) -> list[str]:
    rollout = config.rollout
    samples = rollout.samples_per_prompt
    means = [right / samples for right in range(samples + 1)]
    if any(rollout.filter.lower <= mean <= rollout.filter.upper for mean in means):
        return []
    return [
        f"rollout.filter: with {samples} samples of outcome 0 or 1 no mean lies within "
        f"{rollout.filter.lower} to {rollout.filter.upper}: only fractional outcomes can pass"
    ]


def _keeps_unsolved(config: TrainConfig) -> bool:
    learns = needs_prm(config) and config.prm.update is not UpdateOrder.none
    bare = config.prm.loss is PrmLossKind.ce or (
        config.prm.loss is PrmLossKind.prefix_value and not config.prm.adaptive_boundary
    )
    return learns and config.rollout.filter.lower == 0 and bare


def _warn_idle_ranks(config: TrainConfig, data_size: int) -> list[str]:
    finest = max(config.models.policy.num_mini_batches, config.models.prm.num_mini_batches if needs_prm(config) else 1)
    groups = config.rollout.prompts_per_step // finest
    if groups >= data_size:
        return []
    return [
        f"a mini-batch has {groups} prompts for {data_size} data-parallel ranks: siblings stay together, "
        "so some ranks are idle"
    ]


def _warn_delimiter(config: TrainConfig, data_size: int) -> list[str]:
    delimiter = config.prm.step_delimiter
    if "\\n" not in delimiter and "\\t" not in delimiter:
        return []
    return [
        f'prm.step_delimiter {delimiter}: is a backslash and a letter; a line break is "\\n" in double quotes of '
        "YAML's: on the command line 'prm.step_delimiter=\"\\n\"'"
    ]


def _warn_schedules(config: TrainConfig, data_size: int) -> list[str]:
    roles = ["policy"] + ["prm"] * (needs_prm(config) and config.prm.update is not UpdateOrder.none)
    roles += ["critic"] * (config.advantage.estimator is Estimator.gae)
    models = {name: getattr(config.models, name) for name in roles}
    passes = {"policy": 1, "prm": config.prm.passes, "critic": 1}
    return [
        line
        for name, model in models.items()
        for line in warn_schedule(
            f"models.{name}.optimizer", model.optimizer, config.run.steps * model.num_mini_batches * passes[name]
        )
    ]


def _warn_frozen(config: TrainConfig, data_size: int) -> list[str]:
    if needs_prm(config) and config.prm.update is UpdateOrder.none and config.models.prm.path is None:
        if config.prm.kind is PrmKind.head:
            return [
                "prm.update none with models.prm.path unset: a head that starts at 0 and never learns rewards nothing"
            ]
        return [
            "prm.update none with models.prm.path unset: a PRM that starts as its own reference and never learns "
            "rewards nothing"
        ]
    return []


def warn_rare_success(config: TrainConfig, outcome: float) -> str | None:
    """For a step whose generated responses have this mean outcome: success is rare, and the PRM's loss cannot bear
    prompts that nothing solves. None: neither."""
    if outcome >= RARE_SUCCESS or not _keeps_unsolved(config):
        return None
    instead = "prm.loss to ce_intercept" if config.prm.loss is PrmLossKind.ce else "prm.adaptive_boundary to true"
    return (
        f"the mean outcome is {outcome:.3f}, and rollout.filter.lower 0 keeps prompts that no response solves: "
        f"prm.loss {config.prm.loss} teaches the PRM to lower every sampled token of theirs; set lower above 0, or "
        f"{instead}"
    )


WARNINGS: tuple[Callable[[TrainConfig, int], list[str]], ...] = (
    _warn_sampling,
    _warn_filter,
    _warn_idle_ranks,
    _warn_frozen,
    _warn_delimiter,
    _warn_schedules,
    warn_health,
)
