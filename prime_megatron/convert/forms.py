"""The forms in which megatron-core stores a parameter of many layers, seen as one: all layers stacked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from prime_megatron.errors import InputError

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"^mlp\.experts\.experts\.(\d+)\.(.+)$")
_HALF = re.compile(r"^(.*linear_fc1\.(?:weight|bias))_([wv])$")
NOT_OF_THE_MODEL = ("optimizer.", "rng_state", "rerun_state_machine_state")
"""Tensors that a run saves beside the model's."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a stacked tensor, and where it is stored."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    name: str
    """Of the stored tensor."""
    origin: tuple[int, ...]
    """Its offsets in the stored tensor."""


@dataclass(frozen=True)
class _Name:
    """What a stored tensor's name says."""

    key: str
    lead: tuple[int, ...]
    """Layer, then expert, where they are in the name."""
    second_half: bool | None
    """Of a gated projection that is stored as two tensors; None: it is whole."""


def _parse(name: str) -> _Name:
    lead: tuple[int, ...] = ()
    if match := _LAYER.match(name):
        rest, lead = match[2], (int(match[1]),)
        if expert := _EXPERT.match(rest):
            rest, lead = f"mlp.experts.experts.{expert[2]}", (*lead, int(expert[1]))
        name = f"decoder.layers.{rest}"
    half = _HALF.match(name)
    return _Name(half[1], lead, half[2] == "v") if half else _Name(name, lead, None)


def stacked_shapes(stored: Mapping[str, TensorStorageMetadata], folder: str) -> dict[str, tuple[int, ...]]:
    """Shape by key with all layers (and experts) in front, whatever the form.

    Raises InputError: layers are lacking, have other shapes than their siblings, or are stored in two forms.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    leads: dict[str, set[tuple[int, ...]]] = {}
    inner: dict[str, tuple[int, ...]] = {}
    for name, kind in stored.items():
        parsed, size = _parse(name), tuple(kind.size)
        if parsed.second_half is not None:
            size = (2 * size[0], *size[1:])
        known = inner.setdefault(parsed.key, size)
        others = leads.setdefault(parsed.key, set())
        if known != size or any(len(lead) != len(parsed.lead) for lead in others):
            raise InputError(f"{folder}: {name} is {list(size)}, another layer's is {list(known)}")
        others.add(parsed.lead)
    for key, found in leads.items():
        counts = tuple(max(column) + 1 for column in zip(*found, strict=True))
        expected = 1
        for count in counts:
            expected *= count
        if len(found) != expected:
            raise InputError(f"{folder}: {key} is stored for {len(found)} places of {list(counts)} layers and experts")
        shapes[key] = (*counts, *inner[key])
    return shapes


def chunks_of(name: str, kind: TensorStorageMetadata) -> list[tuple[str, Chunk]]:
    """(key, chunk) of every stored piece of one tensor."""
    parsed = _parse(name)
    below = int(kind.size[0]) if parsed.second_half else 0
    found = []
    for chunk in kind.chunks:
        origin, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        offsets = (origin[0] + below, *origin[1:]) if origin else origin
        lead = (1,) * len(parsed.lead)
        found.append((parsed.key, Chunk((*parsed.lead, *offsets), (*lead, *sizes), name, origin)))
    return found
