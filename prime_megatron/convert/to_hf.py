"""A Megatron distributed checkpoint, of any layout, to a Hugging Face folder, a block of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from prime_megatron.convert.check import VALUE_HEAD_KEY, check_checkpoint
from prime_megatron.convert.read import MegatronRows
from prime_megatron.convert.target import (
    COMPANIONS,
    DTYPES_FILE,
    FLOATS,
    ConversionPlan,
    OnBytes,
    cast,
    common_dtype,
    make_plan,
    rows_per_block,
    writing,
)
from prime_megatron.convert.tensor_map import TensorMap, tensor_map
from prime_megatron.convert.verify import compare
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.companions import copy_companions, describe_weights
from prime_megatron.families.folder import SafetensorsStream, TensorSpec, split_files, write_index
from prime_megatron.families.read import read_config, value_head_keys
from prime_megatron.mcore.weights import (
    MAX_FILE_BYTES,
    file_names,
    natural_order,
)
from prime_megatron.strict_json import read_json


class MegatronToHf:
    """The way back; arguments as ``HfToMegatron``.

    Args:
        template: HF folder that gives config, tokenizer and templates; None: the checkpoint's own ``hf`` folder.
        drop_padding: leave out rows of the vocabulary's padding that are not zero (Megatron-LM fills it with noise).
    """

    changes: tuple[str, ...] = ()

    def __init__(
        self,
        source: Path,
        target: Path,
        dtype: torch.dtype | None,
        template: Path | None,
        *,
        drop_padding: bool = False,
    ) -> None:
        self.source, self.target, self.dtype = source, target, dtype
        self.template = source / COMPANIONS if template is None else template
        if not (self.template / "config.json").exists():
            raise InputError(f"{self.template}: no config.json; name the model's HF folder with --template")
        with MegatronRows(source) as rows:
            value_head = VALUE_HEAD_KEY in rows.shapes
            self.family = read_config(self.template, value_head=value_head)
            _check_template(self.template, self.family, source / COMPANIONS, value_head=value_head)
            self.corrections = self.family.corrections | (value_head_keys(self.family) if value_head else {})
            self.map = tensor_map(self.family, value_head=value_head)
            check_checkpoint(rows, self.map, self.family, self.template / "config.json", drop_padding=drop_padding)
            own = _own_dtypes(source, self.map) if dtype is None else {}
            self.dtypes = {
                name: dtype or own.get(name) or self._stored_dtype(rows, name) for name in self.map.hf_shapes
            }
        self.specs = [
            TensorSpec(name, self.map.hf_shapes[name], self.dtypes[name])
            for name in sorted(self.map.hf_shapes, key=natural_order)
        ]
        self.files = file_names(split_files(self.specs, MAX_FILE_BYTES))

    def _stored_dtype(self, rows: MegatronRows, name: str) -> torch.dtype:
        return common_dtype(rows.dtype(entry.key, entry.place) for _, _, entry, _ in self.map.rows_of(name))

    def plan(self) -> ConversionPlan:
        """The numbers."""
        num_bytes = sum(spec.nbytes for spec in self.specs)
        shapes = {spec.name: spec.shape for spec in self.specs}
        return make_plan(self.family.architecture, shapes, self.dtypes, num_bytes, tuple(self.files), self.target)

    def run(self, on_bytes: OnBytes) -> None:
        """Convert; errors as ``HfToMegatron.run``."""
        with writing(self.target, self.plan().num_bytes) as partial, MegatronRows(self.source) as rows:
            for file, specs in self.files.items():
                stream = SafetensorsStream(partial / file, specs)
                try:
                    for spec in specs:
                        stream.write_rows(spec.name, self._parts(spec, rows, on_bytes))
                finally:
                    stream.close()
            if len(self.files) > 1:
                write_index(partial, self.files)
            copy_companions(self.template, partial)
            sizes = {name: prod(shape) for name, shape in self.map.hf_shapes.items()}
            narrowed = self.dtype is not None
            self.changes = describe_weights(partial, sizes, self.dtypes, cast=narrowed, corrections=self.corrections)

    def verify(self, on_bytes: OnBytes) -> str:
        """As ``HfToMegatron.verify``."""
        return compare(self.target, self.source, on_bytes, written=self.target, narrowed=self.dtype)

    def _parts(self, spec: TensorSpec, rows: MegatronRows, on_bytes: OnBytes) -> Iterator[Tensor]:
        """The tensor in blocks of rows, in order."""
        step = rows_per_block(spec.shape[1:], spec.dtype)
        for start, stop, entry, first in self.map.rows_of(spec.name):
            for low in range(start, stop, step):
                high = min(low + step, stop)
                part = rows.rows(entry.key, entry.place, first + low - start, first + high - start, entry.shape[1:])
                on_bytes(part.numel() * spec.dtype.itemsize)
                yield cast(part, spec.dtype, f"{self.source}: {spec.name}")


def _check_template(template: Path, family: FamilyConfig, own: Path, *, value_head: bool) -> None:
    """Heads that are arranged otherwise have tensors of the same shapes: the checkpoint's own config.json tells."""
    if not (own / "config.json").exists():
        return
    told = read_config(own, value_head=value_head)
    for item in fields(family):
        ours, theirs = getattr(family, item.name), getattr(told, item.name)
        if item.compare and ours != theirs:
            raise InputError(
                f"{template / 'config.json'}: {item.name} is {ours!r}, {own / 'config.json'} of the checkpoint says "
                f"{theirs!r}; is it this model's?"
            )


def _own_dtypes(source: Path, tensors: TensorMap) -> dict[str, torch.dtype]:
    """Each tensor's dtype before it was stacked with wider ones, where the checkpoint says; InputError: damaged."""
    path = source / DTYPES_FILE
    if not path.exists():
        return {}
    try:
        found = {name: FLOATS[dtype] for name, dtype in read_json(path).items()}
    except (InputError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; convert the folder again, or give --dtype") from None
    for name in sorted(found.keys() ^ tensors.hf_shapes.keys()):
        raise InputError(f"{path}: {name} is in this file or in the model, not in both; is it this model's?")
    return found
