"""The tensors of a Hugging Face model folder, read slice by slice and written as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.fused import EMBEDDING, View, fused_views
from prime_megatron.families.megatron_layout import VALUE_HEAD, shard_map
from prime_megatron.families.read import INDEX, OUTPUT_LAYER, SINGLE
from prime_megatron.families.rope import inverse_frequencies
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.strict_json import read_json

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
"""By safetensors' names."""
VALUE_HEAD_TENSOR = VALUE_HEAD.sources[0].name
_SHARD = "model-*-of-*.safetensors"
_COMPARED_ROWS = 4096


class HfFolder:
    """Opened lazily; every fault is one InputError that names file and tensor.

    Experts that lie in one tensor a layer are seen as one tensor an expert.
    """

    def __init__(self, folder: Path | str, family: FamilyConfig) -> None:
        self.folder = Path(folder)
        self.family = family
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._names: dict[Path, frozenset[str]] = {}
        stored = self._locate()
        self.views: dict[str, View] = fused_views(family, stored)
        """Tensors that are parts of stored ones."""
        inside = {view.stored for view in self.views.values()}
        self.files = {name: path for name, path in stored.items() if name not in inside}
        """Tensor name -> file."""
        self.files |= {name: stored[view.stored] for name, view in self.views.items()}

    def __enter__(self) -> HfFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _locate(self) -> dict[str, Path]:
        """Stored tensor -> file."""
        index, single = self.folder / INDEX, self.folder / SINGLE
        if index.exists():
            files = self._indexed(index)
            if single.exists() and single not in files.values():
                raise InputError(f"{self.folder}: two models, {SINGLE} and the shards of {INDEX}; remove one of them")
            return files
        if not single.exists():
            raise InputError(f"{self.folder}: neither {SINGLE} nor {INDEX}; a model folder has safetensors weights")
        if shards := sorted(self.folder.glob(_SHARD)):
            raise InputError(
                f"{self.folder}: two models, {SINGLE} and {shards[0].name} without an index; remove one of them"
            )
        self._handle(single)
        return dict.fromkeys(sorted(self._names[single]), single)

    def _indexed(self, index: Path) -> dict[str, Path]:
        try:
            listed = {str(name): str(file) for name, file in read_json(index)["weight_map"].items()}
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: not a safetensors index (no weight_map)") from None
        for file in sorted(set(listed.values())):
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise InputError(f"{index}: names {file}, which is outside the folder")
            if not (self.folder / file).exists():
                raise InputError(f"{self.folder / file}: missing, though {INDEX} names it; download the model again")
        for file in sorted(set(listed.values())):
            path = self.folder / file
            self._handle(path)
            for name in sorted(self._names[path] - listed.keys()):
                raise InputError(f"{path}: tensor {name} is not in {INDEX}; write the index anew or take it out")
        return {name: self.folder / file for name, file in listed.items()}

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from None
            self._open[path] = handle
            self._names[path] = frozenset(handle.keys())
        return self._open[path]

    def slice(self, name: str) -> Any:
        """A lazy view of one tensor: index it with a tuple of slices to read."""
        if name not in self.files:
            raise InputError(f"{self.folder}: tensor {name} is missing, though config.json asks for it")
        path = self.files[name]
        handle = self._handle(path)
        view = self.views.get(name, None)
        stored = name if view is None else view.stored
        if stored not in self._names[path]:
            raise InputError(f"{path}: tensor {stored} is missing, though {INDEX} says it is there")
        found = handle.get_slice(stored)
        if view is None:
            return found
        if tuple(found.get_shape()) != view.stored_shape:
            raise InputError(
                f"{path}: tensor {stored} is {found.get_shape()}, config.json says {list(view.stored_shape)}"
            )
        return found if view.expert is None else _ExpertSlice(found, view)

    def dtype_name(self, name: str) -> str:
        """The tensor's dtype as safetensors writes it, such as "BF16"."""
        return self.slice(name).get_dtype()

    def check(self, *, value_head: bool = False) -> None:
        """Every tensor the model needs is there, in plain numbers and with the shape that config.json implies, and
        no other but those that say the same as what replaces them: a tied output layer's copy of the embedding, the
        rotary frequencies of old exports.

        value_head: for a critic, which needs no output layer, and whose own head may be missing.
        """
        whole = ParallelSizes(world=1)
        pieces = shard_map(self.family, whole, whole.coordinates(0), value_head=value_head)
        expected = {piece.hf_name: piece.hf_shape for piece in pieces}
        if VALUE_HEAD_TENSOR not in self.files:
            expected.pop(VALUE_HEAD_TENSOR, None)
        for name, shape in expected.items():
            view = self.slice(name)
            found = tuple(view.get_shape())
            if found != shape:
                raise InputError(f"{self.files[name]}: tensor {name} is {list(found)}, config.json says {list(shape)}")
            if view.get_dtype() not in DTYPES:
                raise InputError(f"{self.files[name]}: tensor {name} is {view.get_dtype()}, only {', '.join(DTYPES)}")
        for name in sorted(self.files.keys() - expected.keys()):
            self._check_unused(name, value_head)

    def _check_unused(self, name: str, value_head: bool) -> None:
        if name == OUTPUT_LAYER and value_head and VALUE_HEAD_TENSOR not in self.files:
            return  # a new critic takes the layers of a policy's folder
        if name == OUTPUT_LAYER and not value_head and self.family.tied:
            if self.head_differs():
                raise InputError(f"{self.files[name]}: {name} differs from {EMBEDDING}; it did not when the run began")
            return
        if name in frequency_names(self.family):
            self._check_frequencies(name)
            return
        raise InputError(f"{self.files[name]}: tensor {name} is not part of a {self._described(value_head)}")

    def _described(self, value_head: bool) -> str:
        return f"critic ({VALUE_HEAD_TENSOR} in place of {OUTPUT_LAYER})" if value_head else self.family.architecture

    def head_differs(self) -> bool:
        """Whether lm_head.weight has another value than the embedding, or another shape; dtypes may differ."""
        head, embedding = self.slice(OUTPUT_LAYER), self.slice(EMBEDDING)
        if head.get_shape() != embedding.get_shape() or not {head.get_dtype(), embedding.get_dtype()} <= DTYPES.keys():
            return True
        blocks = range(0, head.get_shape()[0], _COMPARED_ROWS)
        return not all(_equal(*(x[start : start + _COMPARED_ROWS] for x in (head, embedding))) for start in blocks)

    def _check_frequencies(self, name: str) -> None:
        """Old exports have the frequencies, scaled or not, in the weights' dtype."""
        found = self.slice(name)[:].float()
        wanted = (inverse_frequencies(self.family), inverse_frequencies(replace(self.family, rope_scaling=None)))
        if not any(found.shape == one.shape and torch.allclose(found, one, rtol=1e-2) for one in wanted):
            raise InputError(f"{self.files[name]}: {name} differs from what config.json's rotary keys say")


@dataclass(frozen=True)
class _ExpertSlice:
    """One expert's rows of a tensor with all experts of a layer."""

    stored: Any
    view: View

    def get_shape(self) -> list[int]:
        return [self.view.rows, self.view.stored_shape[2]]

    def get_dtype(self) -> str:
        return self.stored.get_dtype()

    def __getitem__(self, index: Any) -> torch.Tensor:
        rows, *rest = index if isinstance(index, tuple) else (index,)
        low, high, _ = rows.indices(self.view.rows)
        return self.stored[(self.view.expert, slice(self.view.start + low, self.view.start + high), *rest)]


def frequency_names(family: FamilyConfig) -> set[str]:
    """Buffers that older versions of transformers saved."""
    layers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(family.layers)}
    return {"model.rotary_emb.inv_freq"} | layers


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Value for value, in the wider dtype."""
    wide = torch.promote_types(one.dtype, two.dtype)
    return torch.equal(one.to(wide), two.to(wide))


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


class SafetensorsStream:
    """Writes one safetensors file tensor by tensor, in the order announced, holding one tensor at a time.

    Format: 8 bytes little-endian header length, a JSON header with name -> dtype, shape and byte range,
    then the data (safetensors, format documentation).
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in specs:
            end = offset + spec.nbytes
            header[spec.name] = {
                "dtype": _DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data starts aligned
        self._waiting = list(reversed(specs))
        self._file: IO[bytes] = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little"))
        self._file.write(text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor, on the CPU; cast to its announced dtype."""
        self.write_rows(name, iter((tensor,)))

    def write_rows(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """The next tensor in parts along its first dimension, one of them in memory at a time."""
        spec = self._waiting.pop()
        assert spec.name == name, (spec, name)
        num_bytes = 0
        for part in parts:
            data = part.to(spec.dtype).contiguous().reshape(-1).view(torch.uint8)
            self._file.write(data.numpy().data)
            num_bytes += data.numel()
        assert num_bytes == spec.nbytes, (spec, num_bytes)

    def close(self) -> None:
        self._file.close()


def split_files(specs: Iterable[TensorSpec], max_file_bytes: int) -> list[list[TensorSpec]]:
    """Consecutive tensors grouped so that no file is larger than max_file_bytes, single tensors aside."""
    files: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if files[-1] and size + spec.nbytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.nbytes
    return files


def write_index(folder: Path, files: Mapping[str, Sequence[TensorSpec]]) -> None:
    """The index of a model in several files."""
    total = sum(spec.nbytes for specs in files.values() for spec in specs)
    weight_map = {spec.name: file for file, specs in files.items() for spec in specs}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
