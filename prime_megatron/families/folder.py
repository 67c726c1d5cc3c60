"""The tensors of a Hugging Face model folder, read slice by slice and written as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.megatron_layout import VALUE_HEAD, shard_map
from prime_megatron.parallel.topology import ParallelSizes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
VALUE_HEAD_TENSOR = VALUE_HEAD.sources[0].name
_IGNORED = ("rotary_emb.inv_freq", "lm_head.weight", VALUE_HEAD_TENSOR)
"""Tensors a folder may have though its config does not ask for them: buffers that older versions saved, the
copy of a tied embedding, the critic's head."""


class HfFolder:
    """Opened lazily; every fault is one InputError that names file and tensor."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._names: dict[Path, frozenset[str]] = {}
        self.files = self._locate()
        """Tensor name -> file."""

    def __enter__(self) -> HfFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _locate(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if index.exists():
            try:
                weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = {str(name): self.folder / str(file) for name, file in weights.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{index}: not a safetensors index (no weight_map)") from None
            for path in sorted(set(files.values())):
                if path.parent != self.folder:
                    raise InputError(f"{index}: names {path}, which is outside the folder")
                if not path.exists():
                    raise InputError(f"{path}: missing, though {INDEX} names it; download the model again")
            return files
        path = self.folder / SINGLE
        if not path.exists():
            raise InputError(f"{self.folder}: neither {SINGLE} nor {INDEX}; a model folder has safetensors weights")
        self._handle(path)
        return dict.fromkeys(sorted(self._names[path]), path)

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
        """A lazy view of one tensor: index it with slices to read."""
        if name not in self.files:
            raise InputError(f"{self.folder}: tensor {name} is missing, though config.json asks for it")
        path = self.files[name]
        handle = self._handle(path)
        if name not in self._names[path]:
            raise InputError(f"{path}: tensor {name} is missing, though {INDEX} says it is there")
        return handle.get_slice(name)

    def dtype_name(self, name: str) -> str:
        """The tensor's dtype as safetensors writes it, such as "BF16"."""
        return self.slice(name).get_dtype()

    def check(self, family: FamilyConfig, *, value_head: bool = False) -> None:
        """Every tensor the model needs is there with the shape config.json implies, and no other.

        value_head: for a critic, which needs no output layer, and whose own head may be missing.
        """
        whole = ParallelSizes(world=1)
        pieces = shard_map(family, whole, whole.coordinates(0), value_head=value_head)
        expected = {piece.hf_name: piece.hf_shape for piece in pieces}
        if VALUE_HEAD_TENSOR not in self.files:
            expected.pop(VALUE_HEAD_TENSOR, None)
        for name, shape in expected.items():
            found = tuple(self.slice(name).get_shape())
            if found != shape:
                raise InputError(f"{self.files[name]}: tensor {name} is {list(found)}, config.json says {list(shape)}")
        for name in sorted(self.files):
            if name not in expected and not name.endswith(_IGNORED):
                raise InputError(f"{self.files[name]}: tensor {name} is not part of a {family.architecture}")


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
