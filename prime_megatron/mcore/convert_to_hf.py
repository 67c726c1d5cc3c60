"""A Megatron distributed checkpoint, of any layout, to a Hugging Face folder, a block of rows in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from prime_megatron.errors import InputError
from prime_megatron.mcore.convert import (
    COMPANIONS,
    OnBytes,
    Plan,
    common_dtype,
    make_plan,
    rows_per_block,
    same,
    writing,
)
from prime_megatron.mcore.convert_map import tensor_map
from prime_megatron.mcore.convert_read import HfRows, MegatronRows, missing_keys
from prime_megatron.mcore.families.read import read_config
from prime_megatron.mcore.hf_folder import (
    VALUE_HEAD_TENSOR,
    HfFolder,
    SafetensorsStream,
    TensorSpec,
    split_files,
    write_index,
)
from prime_megatron.mcore.hf_weights import MAX_FILE_BYTES, copy_companions, file_names, natural_order

_PADDED = (
    "word_embeddings.weight",
    "output_layer.weight",
    "linear_qkv.weight",
    "linear_qkv.bias",
    "linear_proj.weight",
)
"""Tensors that padding (vocabulary, attention groups) makes longer in some layouts."""


class MegatronToHf:
    """The way back; arguments as ``HfToMegatron``.

    template: HF folder that gives config, tokenizer and templates; None: the checkpoint's own ``hf`` folder.
    """

    def __init__(self, source: Path, target: Path, dtype: torch.dtype | None, template: Path | None) -> None:
        self.source, self.target = source, target
        self.template = source / COMPANIONS if template is None else template
        if not (self.template / "config.json").exists():
            raise InputError(f"{self.template}: no config.json; name the model's HF folder with --template")
        self.family = read_config(self.template)
        with MegatronRows(source) as rows:
            value_head = "value_head.weight" in rows.shapes
            self.map = tensor_map(self.family, value_head=value_head)
            self._check(rows)
            self.dtypes = {name: dtype or rows.dtypes[self.map.rows_of(name)[0][2].key] for name in self.map.hf_shapes}
        own = json.loads((self.template / "config.json").read_text(encoding="utf-8"))
        named = [own[key] for key in ("torch_dtype", "dtype") if key in own]
        made = common_dtype(iter(self.dtypes.values()))
        self.config_dtype = None if named[:1] == [str(made).removeprefix("torch.")] else made
        self.specs = [
            TensorSpec(name, self.map.hf_shapes[name], self.dtypes[name])
            for name in sorted(self.map.hf_shapes, key=natural_order)
        ]
        self.files = file_names(split_files(self.specs, MAX_FILE_BYTES))

    def plan(self) -> Plan:
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
            copy_companions(self.template, partial, self.config_dtype)

    def verify(self, on_bytes: OnBytes) -> None:
        """Read the target again and compare every value with the checkpoint's. Raises InputError: a difference."""
        with HfFolder(self.target) as folder:
            folder.check(self.family, value_head=VALUE_HEAD_TENSOR in self.map.hf_shapes)
            files = dict(folder.files)
        with HfRows(files) as written, MegatronRows(self.source) as rows:
            for spec in self.specs:
                first = 0
                for part in self._parts(spec, rows, on_bytes):
                    again = written.rows(spec.name, first, first + part.shape[0])
                    if not same(again, part.to(spec.dtype)):
                        raise InputError(f"{self.target}: {spec.name} differs from {self.source}")
                    first += part.shape[0]

    def _parts(self, spec: TensorSpec, rows: MegatronRows, on_bytes: OnBytes) -> Iterator[Tensor]:
        """The tensor in blocks of rows, in order."""
        step = rows_per_block(spec.shape[1:], spec.dtype)
        for start, stop, entry, first in self.map.rows_of(spec.name):
            for low in range(start, stop, step):
                high = min(low + step, stop)
                part = rows.rows(entry.key, entry.place, first + low - start, first + high - start, entry.shape[1:])
                on_bytes(part.numel() * spec.dtype.itemsize)
                yield part

    def _check(self, rows: MegatronRows) -> None:
        missing = missing_keys(list(self.map.shapes), rows)
        if missing:
            raise InputError(
                f"{self.source}: {missing[0]} is missing, though {self.template / 'config.json'} asks for it; "
                "is it this model's?"
            )
        for key, shape in self.map.shapes.items():
            found = rows.shapes[key]
            fits = len(found) == len(shape) and all(
                has == need or (has > need and key.endswith(_PADDED)) for has, need in zip(found, shape, strict=True)
            )
            if not fits:
                raise InputError(
                    f"{self.source}: {key} is {list(found)}, {self.template / 'config.json'} says {list(shape)}"
                )
