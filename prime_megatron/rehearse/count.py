"""Every distinct rank of a model, built by Megatron and counted to the byte beside what the memory model says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prime_megatron.config import ParallelConfig
from prime_megatron.errors import RunError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.count import rank_parameters
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.mcore.fake import FakeRole, fake_rank
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.memory import PlannedRole
from prime_megatron.plan.roles import RoleMemory, StageMemory, stage_memory
from prime_megatron.rehearse.written import wrong_source
from prime_megatron.run.models import DTYPES


@dataclass(frozen=True)
class Subject:
    """Roles of a run that are one model in one state: the same folder, trained or not."""

    roles: tuple[str, ...]
    folder: str
    trained: bool
    value_head: bool
    family: FamilyConfig
    stages: tuple[RoleMemory, ...]
    """Of the memory model: what the rank of each pipeline stage that holds most does hold."""

    @property
    def name(self) -> str:
        return " and ".join(self.roles)


@dataclass(frozen=True)
class Layout:
    """Where the subjects are laid out."""

    parallel: ParallelConfig
    sizes: ParallelSizes
    dtype: str


@dataclass(frozen=True)
class Kind:
    """Ranks that hold the same of a subject, and one of them as it was built."""

    ranks: tuple[int, ...]
    stage: int
    parameters: int
    built: RoleMemory
    other_buffers: int
    """Bytes of what modules keep beside their parameters; the memory model knows of none."""
    planned: RoleMemory

    @property
    def fault(self) -> str | None:
        """What the memory model says otherwise than Megatron."""
        for what in ("weights", "gradients", "optimizer", "main_weights"):
            found, said = getattr(self.built, what), getattr(self.planned, what)
            if found != said:
                return f"{what} are {found:,.0f} bytes on rank {self.ranks[0]}, the memory model says {said:,.0f}"
        return f"rank {self.ranks[0]} has {self.other_buffers:,} bytes of buffers more" if self.other_buffers else None


def subjects_of(roles: Sequence[PlannedRole]) -> list[Subject]:
    """The models of a memory plan, each state of each once."""
    found: dict[tuple[str, bool, bool], list[PlannedRole]] = defaultdict(list)
    for role in roles:
        found[role.model.folder, role.model.trained, role.activations.value_head].append(role)
    return [
        Subject(tuple(role.model.role for role in alike), *key, alike[0].activations.family, alike[0].stages)
        for key, alike in found.items()
    ]


def count_kinds(subject: Subject, layout: Layout) -> Iterator[Kind]:
    """Build one rank of every kind.

    Raises:
        RunError: Megatron's parameters are not the ones that load, export and reshard go by.
    """
    for stage, ranks in _alike(subject, layout):
        planned = _stage(subject, layout, stage).of(layout.sizes.coordinates(ranks[0]), layout.sizes)
        parameters, built, other = _build(subject, layout, ranks[0])
        yield Kind(ranks, stage, parameters, built, other, planned)


def check_kinds(subject: Subject, layout: Layout, kinds: Sequence[Kind]) -> None:
    """Raise RunError: a kind is not what the memory model says, or the kinds together are not the whole model."""
    faults = [kind.fault for kind in kinds if kind.fault is not None]
    if faults:
        raise RunError(f"{subject.name}: {faults[0]}; the memory model is wrong for this megatron-core")
    shared: dict[int, float] = defaultdict(float)
    for kind in kinds:
        shared[kind.stage] += len(kind.ranks) * kind.built.optimizer
    if subject.trained and layout.parallel.distributed_optimizer:
        _check_shared(subject, layout, shared)
    for stage, planned in enumerate(subject.stages):
        largest = max(kind.built.total for kind in kinds if kind.stage == stage)
        if largest != planned.total:
            raise RunError(
                f"{subject.name}: stage {stage} holds {largest:,.0f} bytes, and {planned.total:,.0f} are planned"
            )


def _stage(subject: Subject, layout: Layout, stage: int) -> StageMemory:
    parallel, sizes = layout.parallel, layout.sizes
    params = rank_parameters(subject.family, sizes, stage, parallel.pipeline_layers, value_head=subject.value_head)
    return stage_memory(params, parallel, sizes, layout.dtype, trained=subject.trained)


def _alike(subject: Subject, layout: Layout) -> list[tuple[int, tuple[int, ...]]]:
    """(stage, ranks) of every kind: those of which the memory model says the same. Where it is wrong, what is built
    differs from it, or the kinds do not add up."""
    found: dict[tuple[int, RoleMemory], list[int]] = defaultdict(list)
    stages = [_stage(subject, layout, stage) for stage in range(layout.sizes.pipeline)]
    for rank in range(layout.sizes.world):
        at = layout.sizes.coordinates(rank)
        found[at.pipeline, stages[at.pipeline].of(at, layout.sizes)].append(rank)
    return [(stage, tuple(ranks)) for (stage, _), ranks in found.items()]


def _build(subject: Subject, layout: Layout, rank: int) -> tuple[int, RoleMemory, int]:
    """(parameters, bytes, bytes of other buffers) of one rank."""
    with fake_rank(layout.parallel, rank, layout.sizes.world) as (topology, _):
        role = FakeRole(
            subject.family,
            topology,
            layout.parallel,
            DTYPES[layout.dtype],
            trained=subject.trained,
            value_head=subject.value_head,
        )
        role.make_state()
        main = float(role.main_weights())
        built = RoleMemory(float(role.weights()), float(role.gradients()), main + role.moments(), main, 0.0)
        shapes, other = role.shapes(), role.other_buffers()
    pieces = shard_map(
        subject.family, layout.sizes, layout.sizes.coordinates(rank), layout.parallel.pipeline_layers,
        value_head=subject.value_head, transformer_engine=False,
    )  # fmt: skip
    fault = wrong_source(shapes, pieces)
    if fault is not None:
        raise RunError(f"{subject.folder}: rank {rank}, {fault}; this is a fault of prime-megatron")
    return role.num_parameters(), built, other


def _check_shared(subject: Subject, layout: Layout, shared: Mapping[int, float]) -> None:
    """The state of every parameter is on one rank of those that hold it."""
    sizes = layout.sizes
    per_element = 12 if layout.dtype == "bfloat16" else 8
    for stage, found in shared.items():
        params = rank_parameters(
            subject.family, sizes, stage, layout.parallel.pipeline_layers, value_head=subject.value_head
        )
        dense = sum(sum(chunk.dense) for chunk in params.chunks) * sizes.tensor
        experts = sum(sum(chunk.experts) for chunk in params.chunks) * sizes.expert * sizes.expert_tensor
        if found != per_element * (dense + experts):
            raise RunError(
                f"{subject.name}: the ranks of stage {stage} hold {found:,.0f} bytes of optimizer state together, and "
                f"its parameters have {per_element * (dense + experts):,}"
            )
