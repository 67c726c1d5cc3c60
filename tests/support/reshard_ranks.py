"""What each rank does in the reshard tests: a real role, engine tensors of its own, the export to compare with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.engine_oracle import engine_tensors
from tests.support.models import restart

BUCKET_BYTES = 20_000


class PlainEngine:
    """Fused tensors, and what it was told. ``spoil``: a tensor whose first element it changes after an update."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, spoil: str | None = None) -> None:
        self.tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        self.spoil = spoil
        self.version = -1
        self.received: dict[str, Tensor] = {}
        self.bucket_bytes: list[int] = []

    def named_targets(self) -> Mapping[str, Tensor]:
        return self.tensors

    def update_weights(self, buckets: Iterable[Any], version: int) -> None:
        for bucket in buckets:
            assert bucket.version == version
            self.bucket_bytes.append(sum(tensor.numel() * tensor.element_size() for tensor in bucket.tensors))
            self.received |= dict(zip(bucket.names, bucket.tensors, strict=True))
        if self.spoil is not None:
            self.tensors[self.spoil].view(-1)[0] += 1.0
        self.version = version

    def wake(self, tags: Collection[str]) -> None:
        pass


class Trainer:
    """A role in one layout, with weights that differ from the folder's, and its export."""

    def __init__(self, folder: str, out: str, parallel: dict[str, Any], dtype: str) -> None:
        from safetensors.torch import load_file

        from prime_megatron.config.model import ParallelConfig
        from prime_megatron.mcore.initialize import start_megatron
        from prime_megatron.mcore.role import Role

        config = ParallelConfig.model_validate_json(json.dumps(parallel))
        self.topology = start_megatron(config, seed=1, backend="gloo", timeout_s=100)
        self.dtype = getattr(torch, dtype)
        self.role = Role("policy", folder, self.topology, config, dtype=self.dtype, optimizer=None)
        for param in self.role.params().values():
            param.mul_(1.5)
        self.role.export(Path(out))
        self.exported = load_file(f"{out}/model.safetensors")
        sizes = self.topology.sizes
        self.block = dist.group.WORLD if sizes.expert * sizes.expert_tensor > 1 else self.topology.model
        self.ranks = dist.get_process_group_ranks(self.block)
        self.sources = [self.role.pieces(rank) for rank in self.ranks]
        self.me = self.ranks.index(self.topology.rank)

    def common(self, dtype: torch.dtype) -> dict[str, Any]:
        group = self.block if len(self.ranks) > 1 else None
        return {"group": group, "me": self.me, "bucket_bytes": BUCKET_BYTES, "dtype": dtype}


def every_layout(folder: str, out: str, jobs: str) -> list[str]:
    """What differs, over all jobs: [layout, engine tensor size] each."""
    wrong = []
    for index, (parallel, engine) in enumerate(json.loads(jobs)):
        wrong += [f"{parallel} -> {engine}: {name}" for name in _live(folder, f"{out}/{index}", parallel, engine)]
        restart()
    return wrong


def _live(folder: str, out: str, parallel: dict[str, Any], ranks: int) -> list[str]:
    from prime_megatron.families.engine_layout import fused_pieces, fused_shapes
    from prime_megatron.weights.in_place import InPlaceReshard
    from prime_megatron.weights.plan import hold, plan_block
    from prime_megatron.weights.sync import WeightSync

    trainer = Trainer(folder, out, parallel, "float32")
    family = trainer.role.family
    shards = [fused_pieces(family, ranks, shard) for shard in range(ranks)]
    plan = plan_block(hold(trainer.sources), [shards[rank % ranks] for rank in trainer.ranks])
    engine = PlainEngine(fused_shapes(family, ranks), torch.float32)
    sync = WeightSync(engine, InPlaceReshard(plan, **trainer.common(torch.float32)), trainer.role.params, check_every=1)
    for version in (0, 1):
        sync.publish(version)
    assert engine.version == 1
    exported = {name: tensor.numpy() for name, tensor in trainer.exported.items()}
    wanted = engine_tensors(family, exported, ranks, trainer.topology.rank % ranks)
    assert wanted.keys() == engine.tensors.keys()
    return [name for name, value in wanted.items() if not np.array_equal(engine.tensors[name].numpy(), value)]


def embedded(folder: str, out: str, jobs: str) -> list[str]:
    """What differs between the embedded engine's model and transformers' reading of the export, over all layouts;
    then whether it answers as one whose weights transformers loaded."""
    wrong = []
    for index, parallel in enumerate(json.loads(jobs)):
        wrong += [f"{parallel}: {name}" for name in _embedded(folder, f"{out}/{index}", parallel)]
        restart()
    return wrong


def _embedded(folder: str, out: str, parallel: dict[str, Any]) -> list[str]:
    from transformers import AutoModelForCausalLM

    from prime_megatron.families.engine_layout import module_pieces
    from prime_megatron.rollout.embedded.engine import EmbeddedEngine
    from prime_megatron.rollout.engine import Request, Sampling
    from prime_megatron.rollout.sampling import SampleKey
    from prime_megatron.types import Bucket
    from prime_megatron.weights.in_place import InPlaceReshard
    from prime_megatron.weights.plan import hold, plan_block
    from prime_megatron.weights.sync import WeightSync

    trainer = Trainer(folder, out, parallel, "float32")
    engine, other = (
        EmbeddedEngine(
            folder, end_token_ids=(), device=torch.device("cpu"), dtype=torch.float32, max_concurrent=concurrent
        )
        for concurrent in (8, 3)
    )
    pieces = module_pieces(trainer.role.family, (piece for rank in trainer.sources for piece in rank))
    plan = plan_block(hold(trainer.sources), [pieces] * len(trainer.ranks))
    sync = WeightSync(engine, InPlaceReshard(plan, **trainer.common(torch.float32)), trainer.role.params, check_every=1)
    for version in (0, 1):
        sync.publish(version)
    loaded = dict(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).named_parameters())
    targets = engine.named_targets()
    assert targets.keys() == loaded.keys() == {piece.param for piece in pieces}
    wrong = [name for name, value in loaded.items() if not torch.equal(targets[name], value)]
    other.update_weights([Bucket(tuple(loaded), tuple(loaded.values()), 0)], 0)
    requests = [
        Request((5, 7 + place // 2), SampleKey(0, 0, place // 2, place % 2), Sampling(max_tokens=12))
        for place in range(8)
    ]
    pairs = zip(engine.generate(requests), other.generate(requests), strict=True)
    return wrong + [f"answer {place}" for place, (a, b) in enumerate(pairs) if a.token_ids != b.token_ids]


def spoiled(folder: str, out: str, spoil: str) -> str:
    """The error of a sync into TP2 x PP2 where rank 3's engine changes a tensor."""
    from prime_megatron.errors import RunError
    from prime_megatron.families.engine_layout import fused_pieces, fused_shapes
    from prime_megatron.weights.in_place import InPlaceReshard
    from prime_megatron.weights.plan import hold, plan_block
    from prime_megatron.weights.sync import WeightSync

    trainer = Trainer(folder, out, {"tensor": 2, "pipeline": 2}, "float32")
    shards = [fused_pieces(trainer.role.family, 2, shard) for shard in (0, 1)]
    plan = plan_block(hold(trainer.sources), [shards[rank % 2] for rank in trainer.ranks])
    shapes = fused_shapes(trainer.role.family, 2)
    engine = PlainEngine(shapes, torch.float32, spoil if trainer.topology.rank == 3 else None)
    sync = WeightSync(engine, InPlaceReshard(plan, **trainer.common(torch.float32)), trainer.role.params, check_every=2)
    sync.publish(0)  # not checked
    try:
        sync.publish(1)
    except RunError as error:
        return str(error)
    return "no error"


def other_dtype(folder: str, out: str, train: str, engine_dtype: str) -> list[str]:
    """What differs after a checked sync between dtypes, TP2 into whole tensors on both ranks."""
    from prime_megatron.families.engine_layout import whole_tensors
    from prime_megatron.weights.in_place import InPlaceReshard
    from prime_megatron.weights.plan import hold, plan_block
    from prime_megatron.weights.sync import WeightSync

    trainer = Trainer(folder, out, {"tensor": 2}, train)
    whole = whole_tensors(piece for pieces in trainer.sources for piece in pieces)
    dtype = getattr(torch, engine_dtype)
    engine = PlainEngine({piece.param: piece.hf_shape for piece in whole}, dtype)
    transport = InPlaceReshard(plan_block(hold(trainer.sources), [whole] * 2), **trainer.common(torch.bfloat16))
    WeightSync(engine, transport, trainer.role.params, check_every=1).publish(0)
    exported = {name: tensor.to(trainer.dtype).to(dtype) for name, tensor in trainer.exported.items()}
    return [name for name, value in exported.items() if not torch.equal(engine.tensors[name], value)]


def named(folder: str, out: str, parallel: str, receivers: str) -> dict[str, Any]:
    """Whole tensors on some of the block's ranks: how many came, what differs, bucket sizes."""
    from prime_megatron.weights.by_bucket import BucketReshard
    from prime_megatron.weights.sync import WeightSync

    trainer = Trainer(folder, out, json.loads(parallel), "float32")
    transport = BucketReshard(trainer.sources, json.loads(receivers), **trainer.common(torch.float32))
    engine = PlainEngine({}, torch.float32)
    WeightSync(engine, transport, trainer.role.params, check_every=1).publish(5)
    wrong = [name for name, tensor in engine.received.items() if not torch.equal(tensor, trainer.exported[name])]
    missing = sorted(trainer.exported.keys() - engine.received.keys())
    largest = max(prod(tensor.shape) * 4 for tensor in trainer.exported.values())
    return {
        "receives": trainer.me in json.loads(receivers),
        "wrong": wrong,
        "missing": missing,
        "buckets": engine.bucket_bytes,
        "largest_tensor": largest,
        "version": engine.version,
    }
