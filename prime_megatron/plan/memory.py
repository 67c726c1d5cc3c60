"""Memory of one GPU by phase of a run: the only memory model. Pure arithmetic on the config and config.json.

The phases are the trainer's stages. All ranks of a pipeline stage hold the same, so a phase is counted per stage, and
the stage that needs most is shown. The trainer's own CUDA context and NCCL's buffers are not in the phases: they
are taken off what the device has (``plan.fit``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prime_megatron.config import Offload, PackingConfig, PrmConfig, StageConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.config.check_stage import stage_folders
from prime_megatron.config.roles import has_told_teacher, rewards_itself
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.count import RankParameters, num_parameters, rank_parameters
from prime_megatron.families.megatron_layout import check_layout
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.activations import EXPERT_IMBALANCE, Activations
from prime_megatron.plan.engine import EngineMemory, engine_memory
from prime_megatron.plan.host import HostMemory, host_memory, state_bytes
from prime_megatron.plan.pieces import pieces_on_device
from prime_megatron.plan.roles import ITEMSIZE, RoleMemory, role_memory
from prime_megatron.step.plan import Model, plan_step
from prime_megatron.step.works import Work, following, works

UPDATES = {"prm": "PRM update", "policy": "policy update", "critic": "critic update", "model": "update"}
"""Role -> its phase, in the order of the trainer's step."""


@dataclass(frozen=True)
class Phase:
    """What is on the GPU of the rank that needs most."""

    name: str
    stage: int
    """The rank's pipeline stage."""
    parts: Mapping[str, float]
    """Bytes by what they are."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class PlannedRole:
    """A model of the run as the memory model counts it."""

    model: Model
    num_parameters: int
    """Of the whole model."""
    stages: tuple[RoleMemory, ...]
    """What a rank of each pipeline stage holds of it."""
    activations: Activations

    @property
    def largest(self) -> RoleMemory:
        """Of the stage that holds most."""
        return max(self.stages, key=lambda memory: memory.total)


@dataclass(frozen=True)
class MemoryPlan:
    """All phases of a run, and what is in them."""

    roles: tuple[PlannedRole, ...]
    engine: EngineMemory | None
    """None: a run that trains one model on rows."""
    phases: tuple[Phase, ...]
    host: HostMemory

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)


def plan_memory(
    config: TrainConfig, families: Mapping[str, FamilyConfig], world_size: int, device_bytes: float | None
) -> MemoryPlan:
    """The phases of a PRIME run.

    Args:
        config: a config that passes its checks.
        families: by folder, of every model that the step plan names.
        world_size: processes.
        device_bytes: what the engine's share is a share of; None: the engine is counted at the least it can do with.

    Raises:
        InputError: a model does not split over the layout.
    """
    sizes = ParallelSizes.from_config(config.parallel, world_size)
    roles = tuple(_role(config, model, families[model.folder], sizes) for model in plan_step(config).models)
    policy = families[policy_folder_of(config)]
    engine = engine_memory(config, policy)
    mode = config.parallel.offload
    stays, turns = mode is Offload.none, mode is Offload.phases

    def rollout(stage: int) -> dict[str, float]:
        return (_resident(roles, stage) if stays else {}) | {"engine": engine.generating(device_bytes)}

    def score(stage: int) -> dict[str, float]:
        most = max(role.activations.scoring(stage) for role in roles)
        return {**_resident(roles, stage), "activations": most, "engine asleep": engine.asleep}

    def reshard(stage: int) -> dict[str, float]:
        held = _resident(roles, stage) if stays else {"weights": _named(roles, "policy").stages[stage].weights}
        buffers = 2 * max(float(config.rollout.bucket_bytes), _largest_tensor(policy, config.models.dtype))
        return {**held, "buckets": buffers, "engine's weights": engine.loading}

    def save(stage: int) -> dict[str, float]:
        # Without offload a checkpoint is written while the engine is awake.
        awake = rollout(stage)["engine"] if stays else engine.asleep
        gathered = 2 * _largest_tensor(policy, config.models.dtype)
        held = _resident(roles, stage)
        if turns:
            most = max((role.stages[stage] for role in roles if role.model.trained), key=state_bytes)
            held = {"weights": most.weights, "optimizer": most.optimizer}
        return {**held, "gathered tensor": gathered, "engine": awake}

    asleep = {"engine asleep": engine.asleep}
    phases = [_worst("rollout", sizes, rollout)]
    if turns:
        phases = [_start(roles, sizes), *phases, *_in_turns(works(config), roles, sizes, asleep)]
    else:
        phases += [_worst("score", sizes, score), *_updates(roles, sizes, asleep)]
    phases += [_worst("reshard", sizes, reshard), _worst("save", sizes, save)]
    return MemoryPlan(roles, engine, tuple(phases), host_memory(config, _by_stage(roles)))


def plan_stage_memory(config: StageConfig, families: Mapping[str, FamilyConfig], world_size: int) -> MemoryPlan:
    """The phases of a run that trains one model on rows; arguments and errors as `plan_memory`."""
    sizes = ParallelSizes.from_config(config.parallel, world_size)
    siblings = config.data.group_size if isinstance(config, PrmConfig) else 1
    num_sequences = -(-config.batch_size // sizes.data) * siblings
    tokens, count = micro_batches(config.packing, num_sequences, config.data.max_tokens)

    def planned(model: Model) -> PlannedRole:
        family = families[model.folder]
        check_layout(family, config.parallel, sizes)
        activations = Activations(
            family, config.parallel, sizes, ITEMSIZE[config.dtype], tokens, count, EXPERT_IMBALANCE, value_head=False
        )
        stages = tuple(
            role_memory(params, config.parallel, sizes, config.dtype, trained=model.trained)
            for params in _stages(family, config, sizes, value_head=False)
        )
        return PlannedRole(model, num_parameters(family), stages, activations)

    if isinstance(config, PrmConfig):
        learner = Model("prm", config.model, True, "learns outcomes")
        reference = Model("reference", stage_folders(config)[-1], False, "denominator of the implicit reward")
        roles: tuple[PlannedRole, ...] = (planned(learner), planned(reference))
    else:
        roles = (planned(Model("model", config.model, True, "learns from rows")),)

    def score(stage: int) -> dict[str, float]:
        return {**_resident(roles, stage), "activations": max(role.activations.scoring(stage) for role in roles)}

    def save(stage: int) -> dict[str, float]:
        return {**_resident(roles, stage), "gathered tensor": 2 * _largest_tensor(families[config.model], config.dtype)}

    scored = [_worst("score", sizes, score)] if len(roles) > 1 else []
    phases = (*scored, *_updates(roles, sizes, {}), _worst("save", sizes, save))
    return MemoryPlan(roles, None, phases, host_memory(config, _by_stage(roles)))


def micro_batches(packing: PackingConfig, num_sequences: int, longest: int) -> tuple[int, int]:
    """Tokens of the largest micro-batch, and how many there are, in a rank's mini-batch of the longest sequences."""
    whole = num_sequences * longest
    tokens = whole if packing.max_sequences is None else min(whole, packing.max_sequences * longest)
    # Padded to its longest sequence, a micro-batch of short ones outgrows max_tokens.
    if packing.max_tokens is not None and not packing.padded:
        tokens = min(tokens, max(packing.max_tokens, longest))
    return tokens, -(-whole // max(longest, tokens // longest * longest))


def _role(config: TrainConfig, model: Model, family: FamilyConfig, sizes: ParallelSizes) -> PlannedRole:
    check_layout(family, config.parallel, sizes)
    value_head = model.value_head
    # A frozen model scores in the micro-batches of the role that it serves.
    served = config.models.policy if rewards_itself(config) else config.models.prm
    settings = {"prm": config.models.prm, "reference": served, "critic": config.models.critic}
    minis = settings.get(model.role, config.models.policy).num_mini_batches
    longest = config.data.max_prompt_tokens + config.rollout.sampling.max_response_tokens
    if has_told_teacher(config) and model.role == "teacher":
        minis = 1  # its longer prompts are packed anew, the whole batch at once
        longest += config.prm.teacher.max_truth_tokens
    num_sequences = -(-config.rollout.prompts_per_step // (minis * sizes.data)) * config.rollout.samples_per_prompt
    tokens, count = micro_batches(config.packing, num_sequences, longest)
    itemsize = ITEMSIZE[config.models.dtype]
    activations = Activations(family, config.parallel, sizes, itemsize, tokens, count, EXPERT_IMBALANCE, value_head)
    stages = tuple(
        role_memory(params, config.parallel, sizes, config.models.dtype, trained=model.trained)
        for params in _stages(family, config, sizes, value_head=value_head)
    )
    return PlannedRole(model, num_parameters(family), stages, activations)


def _stages(
    family: FamilyConfig, config: TrainConfig | StageConfig, sizes: ParallelSizes, *, value_head: bool
) -> list[RankParameters]:
    layers = config.parallel.pipeline_layers
    return [rank_parameters(family, sizes, stage, layers, value_head=value_head) for stage in range(sizes.pipeline)]


def _updates(roles: tuple[PlannedRole, ...], sizes: ParallelSizes, others: Mapping[str, float]) -> list[Phase]:
    """The update of every trained role. Activations are gone when the optimizer steps, so the larger of them counts."""

    def update(learner: PlannedRole) -> Callable[[int], dict[str, float]]:
        def parts(stage: int) -> dict[str, float]:
            activations, step = learner.activations.training(stage), learner.stages[stage].step
            largest = {"activations": activations} if activations >= step else {"optimizer step": step}
            return {**_resident(roles, stage), **largest, **others}

        return parts

    trained = {role.model.role: role for role in roles if role.model.trained}
    return [_worst(name, sizes, update(trained[role])) for role, name in UPDATES.items() if role in trained]


def _in_turns(
    order: tuple[Work, ...], roles: tuple[PlannedRole, ...], sizes: ParallelSizes, others: Mapping[str, float]
) -> list[Phase]:
    """Scoring and the updates where models take turns on the device (parallel.offload phases)."""

    def at_work(index: int) -> Callable[[int], dict[str, float]]:
        work, upcoming = order[index], following(order, index)
        role = _named(roles, work.role)

        def parts(stage: int) -> dict[str, float]:
            memory = role.stages[stage]
            found = {"weights": memory.weights}
            if upcoming is not None:
                found["next model's weights"] = _named(roles, upcoming).stages[stage].weights
            if not work.learns:
                return {**found, "activations": role.activations.scoring(stage), **others}
            activations = role.activations.training(stage)
            step = pieces_on_device(memory, role.activations.family, sizes, stage)
            largest = {"activations": activations} if activations >= step else {"optimizer step, by pieces": step}
            return {**found, "gradients": memory.gradients, **largest, **others}

        return parts

    reading = [_worst("score", sizes, at_work(i)) for i, work in enumerate(order[:-1]) if not work.learns]
    updates = [_worst(UPDATES[work.role], sizes, at_work(i)) for i, work in enumerate(order) if work.learns]
    scored = [max(reading, key=lambda phase: phase.total)] if reading else []
    return [*scored, *updates]


def _start(roles: tuple[PlannedRole, ...], sizes: ParallelSizes) -> Phase:
    """Where models take turns one after the other is built."""

    def parts(stage: int) -> dict[str, float]:
        largest = max((role.stages[stage] for role in roles), key=lambda memory: memory.at_start)
        return {"weights": largest.weights, "gradients": largest.gradients, "optimizer": largest.main_weights}

    return _worst("start", sizes, parts)


def _by_stage(roles: tuple[PlannedRole, ...]) -> list[list[tuple[bool, RoleMemory]]]:
    return [[(role.model.trained, role.stages[stage]) for role in roles] for stage in range(len(roles[0].stages))]


def _named(roles: tuple[PlannedRole, ...], name: str) -> PlannedRole:
    return next(role for role in roles if role.model.role == name)


def _resident(roles: tuple[PlannedRole, ...], stage: int) -> dict[str, float]:
    """Weights, gradients and optimizer state of the roles together."""
    held = [role.stages[stage] for role in roles]
    return {
        "weights": sum(memory.weights for memory in held),
        "gradients": sum(memory.gradients for memory in held),
        "optimizer": sum(memory.optimizer for memory in held),
    }


def _largest_tensor(family: FamilyConfig, dtype: str) -> float:
    """Bytes of the largest tensor of a folder: what travels or is written as a whole."""
    return float(max(family.vocab, family.ffn) * family.hidden * ITEMSIZE[dtype])


def _worst(name: str, sizes: ParallelSizes, parts: Callable[[int], dict[str, float]]) -> Phase:
    phases = [
        Phase(name, stage, {part: size for part, size in parts(stage).items() if size})
        for stage in range(sizes.pipeline)
    ]
    return max(phases, key=lambda phase: phase.total)
