"""What each rank does in the tests of training layouts against real engines: a policy in one layout after the other,
published the way a run does it, and what the engine then holds.

Switching the way of the weights is the tests' alone; a run has one. Engines update their parameters in place, so once
the parameters lie in shared memory (`live`) they can be read there whatever way the weights came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from prime_megatron.errors import RunError
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.weights.segment import open_segment
from prime_megatron.weights.sync import WeightSync
from tests.engines.tiny import END, largest_gap, requests
from tests.support.engine_oracle import engine_tensors
from tests.support.models import restart
from tests.support.toy import merge

if TYPE_CHECKING:
    from prime_megatron.config import TrainConfig
    from prime_megatron.mcore.role import Role

PARITY = 1e-4
CHANGE = 1.0078125
"""Every publication's weights are those of the one before times this, so that one that did not arrive is seen."""
SPOILED = "model.layers.1.self_attn.qkv_proj.weight"

Tensors = Mapping[str, np.ndarray]


def every_layout(settings: str, layouts: str) -> dict[str, list[str]]:
    """What is wrong, by layout and way: all of them in turn, two changed publications each; of the last layout also
    whether the engine answers by its weights, and what is said of spoiled ones.

    Args:
        settings: of a run, without its layout.
        layouts: [layout, transports] each.
    """
    from prime_megatron.config import TrainConfig
    from prime_megatron.mcore.initialize import start_megatron

    base = json.loads(settings)
    found: dict[str, list[str]] = {}
    host: Host | None = None
    jobs = json.loads(layouts)
    for index, (parallel, transports) in enumerate(jobs):
        configs = {
            transport: TrainConfig.model_validate_json(
                json.dumps(merge(base, {"parallel": parallel, "rollout": {"transport": transport}}))
            )
            for transport in transports
        }
        timeout_s = configs["live"].parallel.timeout_s
        # Not every layout here is one that gloo can train in.
        topology = start_megatron(configs["live"].parallel, seed=1, backend="gloo", timeout_s=timeout_s)
        host = host or Host(configs["live"], topology)
        trainer = Trainer(configs["live"], topology, Path(base["run"]["output_dir"]) / f"export-{index}")
        for transport, config in configs.items():
            sync = host.switch(config, topology, trainer.policy)
            wrong = found[f"{parallel} by {transport}"] = []
            for _ in range(2):
                wrong += _publish(host, trainer, sync)
            if index == len(jobs) - 1:
                wrong += _answers(host, trainer)
        if index == len(jobs) - 1:
            for transport in ("live", "bucket"):
                sync = host.switch(configs[transport], topology, trainer.policy)
                found[f"spoiled by {transport}"] = _spoiled(host, trainer, sync)
        restart()
    assert host is not None
    host.close()
    return found


class Trainer:
    """A policy in one layout, whose weights change, and its export."""

    def __init__(self, config: TrainConfig, topology: Topology, out: Path) -> None:
        from prime_megatron.config.check import policy_folder_of
        from prime_megatron.mcore.role import Role
        from prime_megatron.run.models import DTYPES

        folder = policy_folder_of(config)
        dtype = DTYPES[config.models.dtype]
        self.policy = Role("policy", folder, topology, config.parallel, dtype=dtype, optimizer=None)
        self.folder, self.changes = out, 0
        self.exported: Tensors = load_file(Path(folder) / "model.safetensors")

    @property
    def out(self) -> Path:
        """The last export."""
        return self.folder / str(self.changes)

    def change(self) -> None:
        """Other weights than before, exported."""
        before = self.exported
        with torch.no_grad():
            for param in self.policy.params().values():
                param.mul_(CHANGE)
        self.changes += 1
        self.policy.export(self.out)
        self.exported = load_file(self.out / "model.safetensors")
        assert self.exported.keys() == before.keys()
        assert not any(np.array_equal(self.exported[name], before[name]) for name in before)


class Host:
    """This rank's engine, and the memory that its parameters of this rank lie in."""

    def __init__(self, config: TrainConfig, topology: Topology) -> None:
        from prime_megatron.run.engines import build_engine

        engine = build_engine(config, topology, (END,))
        assert isinstance(engine, ProcessEngine)
        self.engine = engine
        self.memory: Mapping[str, Tensor] = engine.named_targets() or {}
        self.name, self.tensor, self.rank = config.rollout.engine, config.rollout.tensor, topology.rank
        self.uplinks = {"live": engine._transport}
        self.version = -1

    def switch(self, config: TrainConfig, topology: Topology, policy: Role) -> WeightSync:
        """The path of a policy's weights into the engine, by the config's way."""
        from prime_megatron.run import engines

        way = config.rollout.transport
        if self.engine._process is not None:
            transport = self.uplinks.get(way) or engines._transport(config)
            transport.restore(self.engine._process, -1)
            self.uplinks[way] = self.engine._transport = transport
        self.engine._targets = self.memory if way == "live" else None
        return engines.build_sync(config, topology, policy, self.engine)

    def close(self) -> None:
        self.engine.close()
        for transport in self.uplinks.values():
            if transport is not None:
                transport.close()

    def differing(self, policy: Role, exported: Tensors) -> list[str]:
        """Of this rank's part of the engine's memory, bit by bit; on the leader also by the engine's own account."""
        wanted = [_wanted(self, policy, exported, rank) for rank in range(self.tensor)]
        mine = wanted[self.rank % self.tensor]
        held = {name: tensor.numpy() for name, tensor in self.memory.items()}
        wrong = sorted(mine.keys() ^ held.keys())
        wrong += [f"memory: {name}" for name in mine.keys() & held.keys() if not _same(mine[name], held[name])]
        if self.engine._process is not None:
            told = self.engine._process.call("bit_sums", timeout_s=60.0)
            assert len(told) == self.tensor
            for rank, (sums, tensors) in enumerate(zip(told, wanted, strict=True)):
                ours = {name: int(_bits(value).sum(dtype=np.int64)) for name, value in tensors.items()}
                names = sorted(name for name in ours.keys() | sums.keys() if ours.get(name) != sums.get(name))
                wrong += [f"rank {rank} says: {name}" for name in names]
        torch.distributed.barrier()  # nobody writes on while an engine still adds up
        return wrong


def _publish(host: Host, trainer: Trainer, sync: WeightSync) -> list[str]:
    trainer.change()
    host.version += 1
    sync.publish(host.version)
    assert host.engine.version == host.version
    return host.differing(trainer.policy, trainer.exported)


def _answers(host: Host, trainer: Trainer) -> list[str]:
    gap = largest_gap(str(trainer.out), host.engine.generate(requests(4)))
    return [] if gap < PARITY else [f"log-probs of the responses are {gap} off"]


def _spoiled(host: Host, trainer: Trainer, sync: WeightSync) -> list[str]:
    """What the run says when one element changes in the memory of every engine's last rank, and what differs."""
    trainer.change()
    host.version += 1
    with _spoiling(host):
        try:
            sync.publish(host.version)
            error = "no error"
        except RunError as stopped:
            error = str(stopped).partition(": ")[2]
    return [error, *host.differing(trainer.policy, trainer.exported)]


@contextmanager
def _spoiling(host: Host) -> Iterator[None]:
    """As soon as the engine has taken an update."""
    process, live = host.engine._process, host.uplinks["live"]
    if process is None or live is None:
        yield
        return
    call = process.call

    def spoil(operation: str, **arguments: Any) -> Any:
        answer = call(operation, **arguments)
        if operation == "commit":
            open_segment(live.paths[-1])[SPOILED][3, 5] += 1.0
        return answer

    process.call = spoil
    try:
        yield
    finally:
        process.call = call


def _wanted(host: Host, policy: Role, exported: Tensors, rank: int) -> Tensors:
    """The parameters of an engine rank, by the names that this engine has for experts."""
    made = engine_tensors(policy.family, exported, host.tensor, rank)
    if host.name == "vllm":
        made = {name.replace(".mlp.experts.", ".mlp.experts.routed_experts."): value for name, value in made.items()}
    return made


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b))


def _bits(array: np.ndarray) -> np.ndarray:
    assert array.dtype == np.float32
    return np.ascontiguousarray(array).view(np.int32)
