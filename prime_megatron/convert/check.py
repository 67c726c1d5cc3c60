"""Whether a Megatron checkpoint is the model that a config.json describes: each tensor, padding of one number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.convert.read import MegatronRows
from prime_megatron.convert.target import BLOCK_BYTES
from prime_megatron.convert.tensor_map import TensorMap
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig

VALUE_HEAD_KEY = "value_head.weight"
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_QKV = ("decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_qkv.bias")
_PROJ = "decoder.layers.self_attention.linear_proj.weight"


@dataclass(frozen=True)
class _Padding:
    """What a layout added: one number of attention groups and one of vocabulary rows for the whole model."""

    groups: int
    rows: int


def check_checkpoint(
    rows: MegatronRows, tensors: TensorMap, family: FamilyConfig, config: Path, *, drop_padding: bool
) -> None:
    """InputError, with the first tensor's name, where the checkpoint has other tensors than the model, other shapes, or
    values where the model has padding."""
    for key in sorted(tensors.shapes.keys() - rows.shapes.keys()):
        raise InputError(f"{rows.folder}: {key} is missing, though {config} asks for it; is it this model's?")
    for key in sorted(rows.shapes.keys() - tensors.shapes.keys()):
        raise InputError(f"{rows.folder}: {key} would be left out: {config} has no such tensor; is it this model's?")
    padding = _padding(rows, family)
    for key, shape in tensors.shapes.items():
        wanted = _padded(key, shape, family, padding)
        if rows.shapes[key] != wanted:
            raise InputError(f"{rows.folder}: {key} is {list(rows.shapes[key])}, {config} says {list(wanted)}")
    for key, shape in tensors.shapes.items():
        if rows.shapes[key] != shape:
            _check_zero(rows, key, shape, drop_padding=drop_padding)


def _padding(rows: MegatronRows, family: FamilyConfig) -> _Padding:
    """From linear_qkv's rows and the embedding's; every other tensor must agree."""
    per_group = (family.heads // family.kv_heads + 2) * family.head_dim
    groups = rows.shapes[_QKV[0]][1] / per_group if len(rows.shapes[_QKV[0]]) > 1 else 0
    return _Padding(
        groups=max(int(groups) - family.kv_heads, 0) if groups == int(groups) else 0,
        rows=max(rows.shapes[_VOCABULARY[0]][0] - family.vocab, 0),
    )


def _padded(key: str, shape: tuple[int, ...], family: FamilyConfig, padding: _Padding) -> tuple[int, ...]:
    queries = family.heads // family.kv_heads * family.head_dim
    if key in _VOCABULARY:
        return (shape[0] + padding.rows, *shape[1:])
    if key in _QKV:
        return (shape[0], shape[1] + padding.groups * (queries + 2 * family.head_dim), *shape[2:])
    return (*shape[:2], shape[2] + padding.groups * queries) if key == _PROJ else shape


def _check_zero(rows: MegatronRows, key: str, shape: tuple[int, ...], *, drop_padding: bool) -> None:
    """What lies beyond the model's shape is zero."""
    places = [(layer,) for layer in range(shape[0])] if key.startswith("decoder.layers.") else [()]
    own, found = (tuple(one)[len(places[0]) :] for one in (shape, rows.shapes[key]))
    for place in places:
        filled = 0
        for region in _beyond(own, found):
            part = rows.region(key, place, region)
            filled += int((part != 0).reshape(part.shape[0], -1).any(1).sum())
        if filled and not (drop_padding and key in _VOCABULARY):
            way = "; --drop-padding leaves them out" if key in _VOCABULARY else "; is it this model's?"
            raise InputError(
                f"{rows.folder}: {key} {list(place)} has {filled} rows that are not zero beyond the model's "
                f"{list(own)}{way}"
            )


def _beyond(own: tuple[int, ...], found: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Blocks of rows beyond ``own``, and of columns of the rows within it."""
    for region in (((own[0], found[0]), *((0, size) for size in found[1:])), _columns(own, found)):
        if region is None or any(low >= high for low, high in region):
            continue
        width = 8
        for low, high in region[1:]:
            width *= high - low
        step = max(1, BLOCK_BYTES // width)
        for start in range(region[0][0], region[0][1], step):
            yield ((start, min(start + step, region[0][1])), *region[1:])


def _columns(own: tuple[int, ...], found: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
    return None if len(own) < 2 else ((0, own[0]), (own[1], found[1]))
