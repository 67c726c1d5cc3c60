"""A role to and from Megatron's distributed checkpoint format: weights, optimizer, schedule; for any layout.

Only tensors go through megatron-core (format torch_dist). What it would pickle into common.pt (Adam's step count and
the schedule's position; everything else follows from the config) is JSON here. Writing needs no helper processes and
no multiprocessing manager, so it can run in place or in one forked child, and a full disk is an exception, not a hang.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import queue
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException, save_config
from megatron.core.dist_checkpointing.dict_utils import merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factory_merges, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy, TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from prime_megatron.device import on_gpu
from prime_megatron.errors import InputError
from prime_megatron.mcore.model import unwrap
from prime_megatron.mcore.offload import OPTIMIZER, PARAMETERS
from prime_megatron.mcore.role import Role
from prime_megatron.mcore.shards import BACKEND, POSITION_FILE, check_shards, read_position
from prime_megatron.mcore.versions import save_options
from prime_megatron.parallel.collectives import agree_on

_DAMAGE = (CheckpointException, OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError, AttributeError)
"""What torch's reader raises of a damaged file."""


@dataclass(frozen=True)
class Written:
    """What this rank wrote of a role."""

    results: list[Any]
    """The writer's entries of the metadata."""
    sha256: dict[str, str]
    """File name -> hash."""


class _Strategy(TorchDistSaveShardedStrategy):
    """Megatron's, with its plan in reach: its own finalisation leaves the other ranks waiting when rank 0 fails."""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, *more: Any) -> AsyncRequest:
        self.writer, self.metadata, _ = save_state_dict_ret
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret, *more)


@dataclass
class ShardWrite:
    """A role's shards of this rank, planned; written here or in a forked child, finished here."""

    folder: Path
    position: dict[str, int]
    strategy: _Strategy
    request: AsyncRequest
    buckets: list[Any] = field(default_factory=list)
    """(path, name, (bytes, tensors)) of every file of this rank; tensors on the host once staged."""

    def stage(self, *, leaves: bool) -> None:
        """Copy what is on a GPU to the host. CPU tensors stay: a fork keeps its own view of them.

        leaves: the role leaves the device before it is written, so CPU tensors are copied, too.
        """
        # Megatron's default copies into torch's pinned memory, which takes up to twice the bytes and keeps them.
        self.buckets = FileSystemWriterAsync.preload_tensors(self.strategy.writer.write_buckets, non_blocking=False)
        if leaves and not on_gpu():
            self.buckets = [
                (path, name, (data, [(item, tensor.clone()) for item, tensor in tensors]))
                for path, name, (data, tensors) in self.buckets
            ]

    def write(self) -> Written:
        """Write and fsync this rank's files.

        Raises:
            OSError, RuntimeError: the disk is full, or the like.
        """
        results: list[Any] = []
        for index, bucket in enumerate(self.buckets):
            outcomes: queue.Queue[Any] = queue.Queue()
            count: queue.Queue[Any] = queue.Queue()
            count.put(index)
            transforms = self.request.async_fn.args[0]
            FileSystemWriterAsync.write_preloaded_data(transforms, index, bucket, outcomes, count, True)
            _, outcome = outcomes.get()
            if isinstance(outcome, Exception):
                raise outcome
            results += outcome
        return Written(results, {name: file_sha256(self.folder / name) for _, name, _ in self.buckets})

    def finish(self, everyones: list[Written]) -> None:
        """Write the metadata; on rank 0, once every rank has written.

        Raises:
            OSError: the disk is full, or the like.
        """
        self.strategy.writer.finish(self.strategy.metadata, [written.results for written in everyones])
        save_config(CheckpointingConfig(*BACKEND), str(self.folder))
        (self.folder / POSITION_FILE).write_text(json.dumps(self.position) + "\n", encoding="utf-8")


class RoleShards:
    """A role's state as megatron describes it for saving; collective over the world to make.

    With the distributed optimizer its shards are gathered over data parallelism here (megatron's fully_reshardable).
    """

    def __init__(self, role: Role) -> None:
        role.memory.need(PARAMETERS, OPTIMIZER)
        self.position = {"adam_steps": 0, "scheduler_steps": 0}  # of a role that never learns
        if role.optimizer is not None:
            self.position = {
                "adam_steps": _adam_steps(role.optimizer.megatron),
                "scheduler_steps": int(role.optimizer.scheduler.num_steps),
            }
            for part in role.optimizer.megatron.chained_optimizers:
                if not isinstance(part, DistributedOptimizer):
                    _make_adam_state(part.optimizer)
        self._sharded, _ = save_preprocess(_sharded_state(role, loading=False), validate_access_integrity=False)

    @property
    def num_bytes(self) -> int:
        """Bytes that this rank will write."""
        return sum(
            value.data.numel() * value.data.element_size()
            for value in nested_values(self._sharded)
            if isinstance(value, ShardedTensor) and value.data is not None and is_main_replica(value.replica_id)
        )

    def plan(self, folder: Path) -> ShardWrite:
        """Agree with the other ranks who writes what. Collective."""
        # Unused, but megatron would start a manager process for it, which outlives a killed rank.
        filesystem_async._results_queue = queue.Queue()
        strategy = _Strategy(*BACKEND, thread_count=1)
        return ShardWrite(folder, self.position, strategy, strategy.async_save(self._sharded, folder, **save_options()))


def load_role(role: Role, folder: Path) -> None:
    """Fill a role's weights, and optimizer and schedule where it learns, from a checkpoint of any layout. Collective.

    Raises:
        InputError: the checkpoint is of another model, or its tensors do not fit this layout.
    """
    role.memory.need(PARAMETERS, OPTIMIZER)
    role.memory.changed(PARAMETERS, OPTIMIZER)
    agree_on(lambda: check_shards(folder))
    position = read_position(folder)
    sharded = _sharded_state(role, loading=True)
    try:
        loaded = _load_sharded(sharded, folder)
    except (CheckpointingException, KeyError, ValueError) as error:
        raise InputError(f"{folder}: does not fit {role.folder} in this layout: {str(error)[:200]}") from error
    except _DAMAGE as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise InputError(f"{folder}: cannot be read ({reason}); give another checkpoint") from error
    for index, chunk in enumerate(role.chunks):
        missing, unexpected = unwrap(chunk).load_state_dict(loaded["model"][f"chunk{index}"], strict=False)
        left_out = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
        assert not left_out, f"{role.name}: {left_out[:3]}"
    if role.optimizer is None:
        return
    optimizer = role.optimizer.megatron
    parts = optimizer.chained_optimizers
    states = [loaded["optimizer"]] if len(parts) == 1 else [loaded["optimizer"][i] for i in range(len(parts))]
    for part, state in zip(parts, states, strict=True):
        _load_optimizer(part, state, position["adam_steps"])
    scheduler = role.optimizer.scheduler
    scheduler.num_steps = position["scheduler_steps"]
    scheduler.step(0)


def tracker_states() -> dict[str, torch.Tensor]:
    """Megatron's model-parallel random states on this rank, uint8 by name."""
    return dict(get_cuda_rng_tracker().get_states())


def restore_tracker_states(states: Mapping[str, torch.Tensor]) -> None:
    """Inverse of `tracker_states`."""
    get_cuda_rng_tracker().set_states(dict(states))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; the file is made durable (fsync) first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_sharded(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Megatron's dist_checkpointing.load without its first step, which would unpickle common.pt or an entry of that
    name: a role's folder has neither."""
    sharded, local, factories = load_preprocess(sharded)
    wanted, _ = extract_sharded_base(sharded)
    merge(local, TorchDistLoadShardedStrategy().load(wanted, folder))
    return apply_factory_merges(local, factories)


def _sharded_state(role: Role, *, loading: bool) -> dict[str, Any]:
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": role.topology.data_context,
    }
    model = {f"chunk{index}": _tensors(unwrap(chunk), metadata) for index, chunk in enumerate(role.chunks)}
    if role.optimizer is None:
        return {"model": model}
    optimizer = role.optimizer.megatron.sharded_state_dict(dict(model), is_loading=loading, metadata=metadata)
    return {"model": model, "optimizer": optimizer}


def _tensors(model: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """A chunk's parameters and buffers; without the extra states of layers, which are empty outside of FP8."""
    sharded = model.sharded_state_dict(metadata=metadata)
    return {name: value for name, value in sharded.items() if not name.endswith("_extra_state")}


def _load_optimizer(part: Any, loaded: dict[str, Any], adam_steps: int) -> None:
    """Tensors from the checkpoint, groups from the config, step from the position."""
    own = part.state_dict()
    if isinstance(part, DistributedOptimizer):
        groups = [group | {"step": adam_steps} for group in own["optimizer"]["param_groups"]]
        part.load_state_dict(
            own
            | {
                "optimizer": {"param_groups": groups},
                "param_state": loaded["param_state"],
                "param_state_sharding_type": "fully_reshardable",
            }
        )
        return
    wrapped = "optimizer" in own
    state = (loaded["optimizer"] if wrapped else loaded)["state"]
    inner = {
        "state": state | {"common_step": torch.tensor(float(adam_steps))},
        "param_groups": (own["optimizer"] if wrapped else own)["param_groups"],
    }
    part.load_state_dict(
        own | {"optimizer": inner, "fp32_from_fp16_params": loaded["fp32_from_fp16_params"]} if wrapped else inner
    )


def _adam_steps(optimizer: Any) -> int:
    """Updates that Adam has made, the same on every rank (one without parameters of its own has counted none)."""
    most = 0
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        counts = [state["step"] for state in inner.state.values() if "step" in state]
        counts += [group["step"] for group in inner.param_groups if "step" in group]
        most = max([most, *(int(count) for count in counts)])
    carrier: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(carrier, most)
    return max(carrier)


def _make_adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Moments of zero where there was no update yet, so that a first checkpoint is as complete as the later ones."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(param.data)
                state["exp_avg_sq"] = torch.zeros_like(param.data)
