"""The policy's way into the engine as a config plans it, for every block of ranks, held against the engine's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from prime_megatron.config import TrainConfig
from prime_megatron.errors import RunError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.engine_layout import fused_shapes, module_pieces
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.mcore.fake import fake_rank
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.rehearse.written import wrong_layout, wrong_write
from prime_megatron.run.engines import experts_module, layout_of
from prime_megatron.run.models import DTYPES
from prime_megatron.run.transport import is_in_process
from prime_megatron.weights.by_bucket import BucketReshard
from prime_megatron.weights.plan import ReshardPlan, hold, plan_block

Pieces = Sequence[Sequence[ShardSlice]]


@dataclass(frozen=True)
class Checked:
    """What was looked through."""

    way: str
    tensors: int
    """Of an engine, or of the model in buckets."""
    elements: int
    """Written by all ranks of a block together."""
    blocks: int
    ranks: int
    """Of a block."""


def check_reshard(config: TrainConfig, family: FamilyConfig, sizes: ParallelSizes) -> Checked:
    """Plan the reshard of every block that differs from the others, and look for elements that are not written once.

    Raises:
        RunError: there is one; it is named.
    """
    by_bucket = _by_bucket(config)
    if config.rollout.engine in ("sglang", "vllm"):
        _check_layout(config, family)
    itemsize = DTYPES[config.rollout.dtype or config.models.dtype].itemsize
    limit = max(1, config.rollout.bucket_bytes // itemsize // 2)
    elements = tensors = 0
    blocks = _blocks(config, sizes)
    for ranks in blocks:
        sources = [_sources(config, family, sizes, rank) for rank in ranks]
        plans = _bucket_plans(config, sources, ranks) if by_bucket else [_live_plan(config, family, sources, ranks)]
        elements = tensors = 0
        for plan, wants in plans:
            fault = wrong_write(plan, sources, wants, limit)
            if fault is not None:
                raise RunError(
                    f"reshard of ranks {ranks[0]} to {ranks[-1]}: {fault}; this is a fault of prime-megatron"
                )
            elements += sum(prod(piece.shape) for pieces in wants for piece in pieces)
            tensors += len({piece.param for pieces in wants for piece in pieces})
    way = "whole tensors in buckets" if by_bucket else "in place"
    return Checked(way, tensors, elements, len(blocks), len(blocks[0]))


def _by_bucket(config: TrainConfig) -> bool:
    """As ``run.transport.transport_of`` decides on the devices that the config is for."""
    if config.rollout.engine not in ("sglang", "vllm"):
        return False
    transport = config.rollout.transport
    if transport != "auto":
        return transport != "live"
    return config.launch.device_memory is not None and not is_in_process(config)


def _blocks(config: TrainConfig, sizes: ParallelSizes) -> list[tuple[int, ...]]:
    """Ranks that together hold the model (``run.engines.build_sync``), of every block whose engines begin elsewhere."""
    if sizes.expert * sizes.expert_tensor > 1:
        return [tuple(range(sizes.world))]
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for data in range(sizes.data):
        ranks = tuple(rank for rank in range(sizes.world) if sizes.coordinates(rank).data == data)
        found.setdefault(tuple(rank % config.rollout.tensor for rank in ranks), ranks)
    return list(found.values())


def _sources(config: TrainConfig, family: FamilyConfig, sizes: ParallelSizes, rank: int) -> list[ShardSlice]:
    at = sizes.coordinates(rank)
    return shard_map(family, sizes, at, config.parallel.pipeline_layers, value_head=False, transformer_engine=False)


def _bucket_plans(config: TrainConfig, sources: Pieces, ranks: Sequence[int]) -> Iterator[tuple[ReshardPlan, Pieces]]:
    """The plan of every bucket, and which ranks receive it: all of an engine in the trainer's processes, the first of
    each replica elsewhere."""
    tensor, everyone = config.rollout.tensor, is_in_process(config)
    receivers = [position for position, rank in enumerate(ranks) if everyone or rank % tensor == 0]
    with fake_rank(config.parallel, ranks[0], _world(config)) as (topology, _):
        reshard = BucketReshard(
            sources,
            receivers,
            group=topology.model if len(ranks) > 1 else None,
            me=0,
            bucket_bytes=config.rollout.bucket_bytes,
            dtype=DTYPES[config.rollout.dtype or config.models.dtype],
        )
    seen: set[str] = set()
    for part in reshard.parts:
        names = {tensor.param for tensor in part.tensors}
        if seen & names:
            raise RunError(f"reshard: {min(seen & names)} is in two buckets; this is a fault of prime-megatron")
        seen |= names
        yield part.fill.plan, [part.tensors if position in receivers else () for position in range(len(ranks))]
    wanted = {piece.hf_name for pieces in sources for piece in pieces}
    if wanted != seen:
        raise RunError(f"reshard: {min(wanted ^ seen)} is in no bucket; this is a fault of prime-megatron")


def _live_plan(
    config: TrainConfig, family: FamilyConfig, sources: Pieces, ranks: Sequence[int]
) -> tuple[ReshardPlan, Pieces]:
    if config.rollout.engine in ("sglang", "vllm"):
        layout = layout_of(config, family)
        wants: Pieces = [layout[rank % config.rollout.tensor] for rank in ranks]
    else:
        wants = [module_pieces(family, (piece for pieces in sources for piece in pieces))] * len(ranks)
    return plan_block(hold(sources), wants), wants


def _check_layout(config: TrainConfig, family: FamilyConfig) -> None:
    rollout, module = config.rollout, experts_module(config)
    shapes = fused_shapes(family, rollout.tensor, experts_module=module, expert_size=rollout.expert)
    vocabulary = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in shapes]
    padding = {name: rollout.tensor * prod(shapes[name]) - family.vocab * family.hidden for name in vocabulary}
    fault = wrong_layout(layout_of(config, family), shapes, padding)
    if fault is not None:
        raise RunError(f"rollout: {fault}; this is a fault of prime-megatron")


def _world(config: TrainConfig) -> int:
    return config.launch.nodes * config.launch.processes_per_node
