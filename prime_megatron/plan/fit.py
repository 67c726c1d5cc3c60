"""Whether a run fits its GPUs, and if not, which key would make it fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prime_megatron.config import Offload, StageConfig, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_stage import check_stage_config, stage_folders
from prime_megatron.config.sizes import EXPECTED, parse_size
from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.plan.memory import MemoryPlan, plan_memory, plan_stage_memory
from prime_megatron.step.plan import Model, plan_step

GIB = 2**30
CONTEXT_BYTES = 4 * GIB
"""Of the trainer's process, kept off what the device has: its CUDA context (612 MiB on an H200), libraries' workspaces
and what else stays when every model is in host memory (3.5 GiB together, the same card), and room for NCCL's buffers,
which were not measured."""
USABLE = 0.95
"""Share of the rest that a plan may fill: the allocator's gaps, and what the model does not count."""


@dataclass(frozen=True)
class Device:
    """One GPU's memory."""

    key: str
    """Where it was said: --device-memory or launch.device_memory."""
    total: int
    """Bytes, as given."""

    @property
    def usable(self) -> float:
        """Bytes that the phases may take."""
        return USABLE * (self.total - CONTEXT_BYTES)


def check_host(config: TrainConfig | StageConfig, plan: MemoryPlan) -> None:
    """Raise InputError where a node's ranks take more host memory than launch.host_memory."""
    if config.launch.host_memory is None:
        return
    total = parse_size(config.launch.host_memory)
    assert total is not None, "checked when the config was loaded"
    each, ranks = plan.host.copies + plan.host.saving, config.launch.processes_per_node
    if ranks * each > total:
        background = " checkpoint.asynchronous=false, or" if config.checkpoint.asynchronous else ""
        raise InputError(
            f"launch.host_memory: {ranks} ranks of a node take {ranks * each / GIB:.1f} GiB: "
            f"{plan.host.copies / GIB:.1f} each for models, {plan.host.saving / GIB:.1f} each while a checkpoint is "
            f"written, and it has {total / GIB:.1f}; set{background} fewer launch.processes_per_node over more nodes"
        )


def device_of(config: TrainConfig | StageConfig, option: str | None) -> Device | None:
    """The GPU that a run is planned for: the option's, else launch.device_memory; None: neither is given.

    Raises:
        InputError: an option that is not a size.
    """
    if option is not None:
        total = parse_size(option)
        if total is None:
            raise InputError(f"--device-memory: expected {EXPECTED}, got {option!r}")
        return Device("--device-memory", total)
    if config.launch.device_memory is None:
        return None
    total = parse_size(config.launch.device_memory)
    assert total is not None, "checked when the config was loaded"
    return Device("launch.device_memory", total)


def read_families(config: TrainConfig | StageConfig) -> Mapping[str, FamilyConfig] | str:
    """What the run's models are, by folder; a folder that is not there as text.

    Raises:
        InputError: a config.json that cannot be read.
    """
    folders = (
        dict.fromkeys(stage_folders(config), False)
        if isinstance(config, StageConfig)
        else _value_heads(plan_step(config).models)
    )
    for folder in folders:
        if not Path(folder).is_dir():
            return folder
    return {folder: read_config(folder, value_head=head) for folder, head in folders.items()}


def _value_heads(models: Sequence[Model]) -> dict[str, bool]:
    """Folder -> whether no model that starts from it predicts tokens."""
    return {one.folder: all(other.value_head for other in models if other.folder == one.folder) for one in models}


def plan_for(
    config: TrainConfig | StageConfig, families: Mapping[str, FamilyConfig], world_size: int, device: Device | None
) -> MemoryPlan:
    """The memory plan of either kind of run; errors as `plan_memory`."""
    if isinstance(config, StageConfig):
        return plan_stage_memory(config, families, world_size)
    return plan_memory(config, families, world_size, None if device is None else float(device.total))


def check_memory(config: TrainConfig | StageConfig) -> None:
    """Refuse a run that does not fit launch.device_memory or launch.host_memory; passes where they are not given, or a
    folder is not there.

    Raises:
        InputError: it does not fit; the line says which key would make it fit.
    """
    device = device_of(config, None)
    families = read_families(config)
    if isinstance(families, str):
        return
    world_size = config.launch.nodes * config.launch.processes_per_node
    if config.launch.host_memory is not None:
        check_host(config, plan_for(config, families, world_size, device))
    if device is not None:
        check_fit(config, families, world_size, device)


def check_fit(
    config: TrainConfig | StageConfig, families: Mapping[str, FamilyConfig], world_size: int, device: Device
) -> None:
    """Raise InputError, in one line that says what to change, where the run does not fit the device."""
    problem = _problem(plan_for(config, families, world_size, device), device)
    if problem is None:
        return
    keys = _advice(config, families, world_size, device)
    remedy = f"set {' and '.join(keys)}" if keys else "use more GPUs (launch.nodes), or smaller models"
    raise InputError(f"{device.key}: {problem}; {remedy}")


def _problem(plan: MemoryPlan, device: Device) -> str | None:
    peak, engine = plan.peak, plan.engine
    if peak.total > device.usable:
        return (
            f"the {peak.name} needs {peak.total / GIB:.1f} GiB of a GPU of {device.total / GIB:.1f} GiB, of which "
            f"{device.usable / GIB:.1f} can be filled"
        )
    if engine is not None and engine.fraction is not None:
        share = engine.share(float(device.total))
        least = engine.weights + engine.one_sequence
        if share < least:
            return (
                f"the engine's share ({engine.fraction:g}) is {share / GIB:.1f} GiB, and its weights with one sequence "
                f"take {least / GIB:.1f}"
            )
    return None


def _advice(
    config: TrainConfig | StageConfig, families: Mapping[str, FamilyConfig], world_size: int, device: Device
) -> list[str]:
    """The first change of one key that makes the run fit, else of few keys: kind after kind is taken at its strongest,
    and what turns out not to be needed is left out again. Empty: nothing helps."""

    def fits(changes: Mapping[str, Any]) -> bool:
        changed = _changed(config, changes, world_size)
        return changed is not None and _fits(changed, families, world_size, device)

    ladder = _ladder(config)
    taken: dict[str, Any] = {}
    for kind in [[], *ladder]:
        possible = [step for step in kind if _changed(config, taken | dict([step]), world_size) is not None]
        taken |= dict(possible[-1:])
        for key, value in chain.from_iterable(ladder):
            if fits(taken | {key: value}):
                found = taken | {key: value}
                for other in taken.keys() - {key}:
                    rest = {name: kept for name, kept in found.items() if name != other}
                    found = rest if fits(rest) else found
                return [f"{name}={kept}" for name, kept in found.items()]
    return []


def _ladder(config: TrainConfig | StageConfig) -> list[list[tuple[str, Any]]]:
    """Changes that save memory, a list a kind, the cheapest kind and the smallest step first."""
    parallel, tokens = config.parallel, config.packing.max_tokens or 2**16
    modes = ["none", "selective", "full"]
    kinds: list[list[tuple[str, Any]]] = [
        [("parallel.recompute", mode) for mode in modes[modes.index(parallel.recompute) + 1 :]],
        [("packing.max_tokens", tokens >> shift) for shift in range(1, 6) if tokens >> shift >= 1024],
        [("parallel.tensor", parallel.tensor * factor) for factor in (2, 4, 8)],
        [("parallel.expert", parallel.expert * factor) for factor in (2, 4, 8)],
        [("parallel.pipeline", parallel.pipeline * factor) for factor in (2, 4, 8)],
    ]
    if isinstance(config, StageConfig):
        return kinds
    offload = [("parallel.offload", Offload.generation)] if config.parallel.offload is Offload.none else []
    name = config.rollout.engine
    fractions = {"sglang": config.rollout.sglang.memory_fraction, "vllm": config.rollout.vllm.memory_fraction}
    tenths = range(int(fractions[name] * 10 - 1e-9), 0, -1) if name in fractions else ()
    # Last: it costs the most time of all.
    turns = [("parallel.offload", Offload.phases)] if config.parallel.offload is not Offload.phases else []
    return [offload, *kinds, turns, [(f"rollout.{name}.memory_fraction", tenth / 10) for tenth in tenths]]


def _changed(
    config: TrainConfig | StageConfig, changes: Mapping[str, Any], world_size: int
) -> TrainConfig | StageConfig | None:
    """The config with these keys changed; None where it could not run."""
    changed: Any = config
    for key, value in changes.items():
        changed = _with(changed, key.split("."), value)
    if changed.parallel.tensor > max(changed.launch.processes_per_node, config.parallel.tensor):
        return None  # tensor parallelism over nodes is no advice
    try:
        if isinstance(changed, StageConfig):
            check_stage_config(changed, world_size)
        else:
            check_train_config(changed, world_size)
    except InputError:
        return None
    return changed


def _with(section: Any, path: list[str], value: Any) -> Any:
    below = value if len(path) == 1 else _with(getattr(section, path[0]), path[1:], value)
    return section.model_copy(update={path[0]: below})


def _fits(
    config: TrainConfig | StageConfig, families: Mapping[str, FamilyConfig], world_size: int, device: Device
) -> bool:
    try:
        return _problem(plan_for(config, families, world_size, device), device) is None
    except InputError:  # a model that does not split this way
        return False
