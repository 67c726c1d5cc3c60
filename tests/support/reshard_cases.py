"""Numbered weights, and their destinations in the trainer and in the engine, written out in numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from hypothesis import strategies as st

from prime_megatron.families import FamilyConfig
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.parallel.shards import Region, ShardSlice, as_slices
from prime_megatron.parallel.topology import ParallelSizes
from tests.unit.test_families_megatron_layout import BASE, MOE


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a training layout, an engine's tensor-parallel size."""

    config: FamilyConfig
    sizes: ParallelSizes
    stage_layers: tuple[int, ...] | None
    engine: int

    def sources(self, rank: int) -> list[ShardSlice]:
        return shard_map(self.config, self.sizes, self.sizes.coordinates(rank), self.stage_layers)

    def blocks(self) -> list[list[int]]:
        """Groups of ranks that together hold the model."""
        ranks = range(self.sizes.world)
        if self.sizes.expert * self.sizes.expert_tensor > 1:
            return [list(ranks)]
        found: dict[tuple[int, int], list[int]] = {}
        for rank in ranks:
            at = self.sizes.coordinates(rank)
            found.setdefault((at.data, at.context), []).append(rank)
        return list(found.values())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any layout of a small model, dense or not, to an engine of 1, 2 or 4 ranks."""
    moe = draw(st.booleans())
    config = MOE if moe else BASE
    pipeline = draw(st.sampled_from([1, 2, 4] if not moe else [1, 2]))
    tensor = draw(st.sampled_from([1, 2, 4] if pipeline < 4 else [1, 2]))
    virtual = draw(st.sampled_from([1, 2])) if pipeline > 1 else 1
    data = draw(st.sampled_from([1, 2]))
    world = tensor * pipeline * data
    expert = expert_tensor = 1
    if moe:
        expert = draw(st.sampled_from([size for size in (1, 2, 4) if tensor * data % size == 0]))
        expert_tensor = draw(st.sampled_from([size for size in (1, 2) if tensor * data % (size * expert) == 0]))
    layers = draw(st.integers(pipeline * virtual, pipeline * virtual + 2))
    config = dataclasses.replace(
        config,
        layers=layers,
        vocab=draw(st.integers(60, 140)),
        tied=draw(st.booleans()),
        kv_heads=draw(st.sampled_from([1, 2, 4, 8])),
    )
    stage_layers = None
    if virtual == 1 and draw(st.booleans()):
        spare = layers - pipeline
        stage_layers = tuple(1 + (spare if stage == pipeline - 1 else 0) for stage in range(pipeline))
    sizes = ParallelSizes(
        world,
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual,
        expert=expert,
        expert_tensor=expert_tensor,
    )
    return Case(config, sizes, stage_layers, draw(st.sampled_from([1, 2, 4])))


def numbered(case: Case) -> dict[str, np.ndarray]:
    """Every Hugging Face tensor, each element with a number of its own from 1 on."""
    whole = dataclasses.replace(case, sizes=ParallelSizes(1), stage_layers=None)
    tensors: dict[str, np.ndarray] = {}
    start = 1
    for piece in whole.sources(0):
        if piece.hf_name not in tensors:
            tensors[piece.hf_name] = np.arange(start, start + prod(piece.hf_shape)).reshape(piece.hf_shape)
            start += prod(piece.hf_shape)
    return tensors


def train_params(pieces: Sequence[ShardSlice], tensors: dict[str, np.ndarray]) -> dict[tuple[int, str], torch.Tensor]:
    """A rank's parameters: its pieces filled in; padding is -1."""
    ends: dict[tuple[int, str], Region] = {}
    for piece in pieces:
        at = (piece.chunk, piece.param)
        known = ends.get(at, piece.local)
        ends[at] = tuple((0, max(a[1], b[1])) for a, b in zip(known, piece.local, strict=True))
    params = {at: torch.full([stop for _, stop in box], -1, dtype=torch.int64) for at, box in ends.items()}
    for piece in pieces:
        value = torch.from_numpy(tensors[piece.hf_name][as_slices(piece.hf)])
        params[piece.chunk, piece.param][as_slices(piece.local)] = value
    return params
