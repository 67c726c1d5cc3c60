"""The rehearsal of a config, told line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.families import FamilyConfig
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.fit import plan_for
from prime_megatron.plan.memory import PlannedRole
from prime_megatron.rehearse.count import Kind, Layout, Subject, check_kinds, count_kinds, subjects_of
from prime_megatron.rehearse.reshard import check_reshard
from prime_megatron.rehearse.update import few_ranks, trace_update

_HEADER = ("rank", "stage", "ranks alike", "parameters", "weights", "gradients", "optimizer", "memory model")


@dataclass(frozen=True)
class Extent:
    """How much is rehearsed."""

    update: bool
    """Run an update, too."""
    all_ranks: bool
    """Of the update: on every rank, not on a few."""
    micro_batches: int | None
    """Of the update; None: one, and with virtual stages as many as there are stages."""


def rehearse(
    config: TrainConfig | StageConfig, families: Mapping[str, FamilyConfig], world_size: int, extent: Extent
) -> Iterator[str]:
    """Build, count, plan and run; every line is told as soon as it is known.

    Raises:
        InputError: a model that does not split over the layout.
        RunError: what was built is not what is planned.
    """
    plan = plan_for(config, families, world_size, None)
    dtype = config.dtype if isinstance(config, StageConfig) else config.models.dtype
    layout = Layout(config.parallel, ParallelSizes.from_config(config.parallel, world_size), dtype)
    subjects = subjects_of(plan.roles)
    for subject in subjects:
        yield from _count(subject, layout)
    if isinstance(config, TrainConfig):
        policy = families[policy_folder_of(config)]
        checked = check_reshard(config, policy, layout.sizes)
        yield (
            f"reshard to {config.rollout.engine}, {checked.way}: {checked.tensors:,} tensors, {checked.elements:,} "
            f"elements, each written once; {checked.blocks} kind(s) of block, {checked.ranks} ranks"
        )
    if extent.update:
        for subject in subjects:
            if subject.trained:
                yield _update(subject, layout, plan.roles, _longest(config), extent)


def _count(subject: Subject, layout: Layout) -> Iterator[str]:
    state = "trained" if subject.trained else "frozen"
    yield f"{subject.name} ({state}, {layout.dtype}): {subject.folder}"
    kinds: list[Kind] = []
    rows: list[Sequence[str]] = [_HEADER]
    for kind in count_kinds(subject, layout):
        kinds.append(kind)
        rows.append(_row(kind))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        yield "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
    check_kinds(subject, layout, kinds)


def _row(kind: Kind) -> tuple[str, ...]:
    built = (kind.built.weights, kind.built.gradients, kind.built.optimizer)
    return (
        str(kind.ranks[0]),
        str(kind.stage),
        str(len(kind.ranks)),
        f"{kind.parameters:,}",
        *(f"{count:,.0f}" for count in built),
        "the same" if kind.fault is None else "differs",
    )


def _update(subject: Subject, layout: Layout, roles: Sequence[PlannedRole], longest: int, extent: Extent) -> str:
    sizes = layout.sizes
    tokens = max(role.activations.tokens for role in roles if role.model.role in subject.roles)
    ranks = list(range(sizes.world)) if extent.all_ranks else few_ranks(sizes)
    count = extent.micro_batches or (sizes.pipeline if sizes.virtual_pipeline > 1 else 1)
    traced = trace_update(subject, layout, ranks, tokens=tokens, longest=longest, micro_batches=count)
    calls = ", ".join(f"{name.lower().removesuffix('_group')} {number}" for name, number in traced.calls.most_common())
    which = "all ranks" if extent.all_ranks else f"ranks {', '.join(map(str, traced.ranks))}"
    return (
        f"{subject.name} update, {count} x {traced.tokens:,} tokens, {which}: forward, backward and optimizer step "
        f"ran; calls agree: {calls}"
    )


def _longest(config: TrainConfig | StageConfig) -> int:
    if isinstance(config, StageConfig):
        return config.data.max_tokens
    return config.data.max_prompt_tokens + config.rollout.sampling.max_response_tokens
