"""Which rows of which Hugging Face tensor make up which tensor of a Megatron distributed checkpoint: pure data.

A checkpoint has one global tensor per kind of parameter, layers (and experts) stacked in front: the shape does not
depend on the layout, which is why it loads into any. Within a layer its rows are those of a model on one rank, so the
shard map of one rank says everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from prime_megatron.families import FamilyConfig
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.parallel.topology import ParallelSizes

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"^mlp\.experts\.local_experts\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Run:
    """Rows start to stop of an entry are the rows of an HF tensor from hf_start on."""

    start: int
    stop: int
    hf_name: str
    hf_start: int


@dataclass(frozen=True)
class Entry:
    """One layer's (and expert's) part of a global tensor: an HF-sized parameter."""

    key: str
    place: tuple[int, ...]
    """Layer, then expert: indices of the leading dimensions; empty for a tensor outside the layers."""
    shape: tuple[int, ...]
    """Without the leading dimensions."""
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class TensorMap:
    """A model's entries and the shapes on both sides."""

    entries: tuple[Entry, ...]
    shapes: dict[str, tuple[int, ...]]
    """Global shape by key."""
    hf_shapes: dict[str, tuple[int, ...]]
    objects: tuple[str, ...]
    """Names of the empty extra states that megatron-core's linear layers look for."""

    @cached_property
    def _inverse(self) -> dict[str, list[tuple[int, int, Entry, int]]]:
        inverse: dict[str, list[tuple[int, int, Entry, int]]] = {name: [] for name in self.hf_shapes}
        for entry in self.entries:
            for run in entry.runs:
                inverse[run.hf_name].append((run.hf_start, run.hf_start + run.stop - run.start, entry, run.start))
        return {name: sorted(rows, key=lambda row: row[0]) for name, rows in inverse.items()}

    def rows_of(self, hf_name: str) -> list[tuple[int, int, Entry, int]]:
        """(hf start, hf stop, entry, its first row) that make up an HF tensor, in order of its rows."""
        return self._inverse[hf_name]


def tensor_map(family: FamilyConfig, *, value_head: bool) -> TensorMap:
    """The map of a model; a critic has value_head.weight in place of the output layer."""
    sizes = ParallelSizes(world=1)
    by_param: dict[str, list[ShardSlice]] = {}
    for piece in shard_map(family, sizes, sizes.coordinates(0), value_head=value_head):
        by_param.setdefault(piece.param, []).append(piece)
    entries = tuple(_entry(param, pieces, bool(family.experts)) for param, pieces in by_param.items())
    leading = (family.layers, family.experts)
    shapes = {entry.key: (*leading[: len(entry.place)], *entry.shape) for entry in entries}
    hf_shapes = {piece.hf_name: piece.hf_shape for pieces in by_param.values() for piece in pieces}
    return TensorMap(entries, shapes, hf_shapes, tuple(_extra_states(family)))


def _entry(param: str, pieces: list[ShardSlice], moe: bool) -> Entry:
    key, place = param, ()
    if match := _LAYER.match(param):
        rest, place = match[2], (int(match[1]),)
        if expert := _EXPERT.match(rest):
            rest, place = f"mlp.experts.experts.{expert[2]}", (*place, int(expert[1]))
        key = f"decoder.layers.{_norm_name(rest, moe)}"
    shape = tuple(max(piece.local[dim][1] for piece in pieces) for dim in range(len(pieces[0].local)))
    runs = sorted((Run(*piece.local[0], piece.hf_name, piece.hf[0][0]) for piece in pieces), key=lambda run: run.start)
    assert runs[0].start == 0 and runs[-1].stop == shape[0], param
    assert all(one.stop == two.start for one, two in pairwise(runs)), param
    return Entry(key, place, shape, tuple(runs))


def _norm_name(rest: str, moe: bool) -> str:
    """Norms go by Transformer Engine's names, as in ``spec.layer_spec``."""
    if rest == "input_layernorm.weight":
        return "self_attention.linear_qkv.layer_norm_weight"
    return "mlp.linear_fc1.layer_norm_weight" if rest == "pre_mlp_layernorm.weight" and not moe else rest


def _extra_states(family: FamilyConfig) -> Iterator[str]:
    """As megatron-core names its sharded objects: key/shard_<place>_<sizes>."""
    layers, experts = family.layers, family.experts
    attention = ("linear_qkv", "linear_proj", "core_attention")
    for layer in range(layers):
        for module in (f"self_attention.{name}" for name in attention):
            yield f"decoder.layers.{module}._extra_state/shard_{layer}_{layers}"
        for linear in ("linear_fc1", "linear_fc2"):
            if not experts:
                yield f"decoder.layers.mlp.{linear}._extra_state/shard_{layer}_{layers}"
            for expert in range(experts):
                place = f"shard_{layer}.{expert}_{layers}.{experts}"
                yield f"decoder.layers.mlp.experts.experts.{linear}._extra_state/{place}"
