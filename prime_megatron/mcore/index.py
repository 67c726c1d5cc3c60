"""The index of a distributed checkpoint (`.metadata`), which is a pickle: looked through before anything of it runs.

torch and megatron-core read the file with pickle's own loader, which imports and calls whatever the file names, and a
manifest says only that a file is as it was written, not who wrote it. Here the names in it are held against the few
that torch (2.13) and megatron-core (0.16 to 0.19) write, first with stand-ins, so that nothing is called, then with the
classes themselves. An entry that is no tensor is refused where a run resumes: torch would unpickle its bytes.
"""

from __future__ import annotations

import importlib
import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from prime_megatron.errors import InputError

INDEX_FILE = ".metadata"
MAX_INDEX_BYTES = 2**31
"""A larger index is not read; that of a checkpoint of 72 B parameters over 128 ranks has some 20 MB."""
_DCP = "torch.distributed.checkpoint"
_ENUMS = {
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): (
        "TORCH_CONTIGUOUS_FORMAT",
        "TORCH_CHANNELS_LAST",
        "TORCH_PRESERVE_FORMAT",
    ),
    (f"{_DCP}.planner", "WriteItemType"): ("TENSOR", "SHARD", "BYTE_IO"),
}
_CLASSES = {
    *_ENUMS,
    *((f"{_DCP}.metadata", name) for name in ("Metadata", "MetadataIndex", "TensorStorageMetadata", "StorageMeta")),
    *((f"{_DCP}.metadata", name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties")),
    # megatron-core keeps every rank's plan beside the index.
    *((f"{_DCP}.planner", name) for name in ("SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData")),
    *((f"{_DCP}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
_CONTAINERS: dict[tuple[str, str], type] = {("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set}
_GETATTR = ("builtins", "getattr")
"""How Python 3.11 writes a member of an Enum."""
_REFUSED_OPCODES = frozenset(
    {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"}
)
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def read_index(folder: Path, *, tensors_only: bool = False) -> Metadata:
    """The index of a checkpoint folder, of no other classes than an index has.

    Args:
        folder: of the checkpoint.
        tensors_only: refuse an entry that is no tensor, too.

    Raises:
        InputError: no such file; it is no index, names anything else, or points to files outside of the folder.
    """
    path = folder / INDEX_FILE
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for an index")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the checkpoint again") from None
    try:
        _check_opcodes(data)
        _Reader(data, _stand_in()).load()
        metadata = _Reader(data, _real).load()
        _check_form(metadata, tensors_only)
    except Exception as error:  # pickle raises whatever the damage leads to
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not the index of a distributed checkpoint ({reason}); it is not read") from None
    assert isinstance(metadata, Metadata)
    return metadata


class _Reader(pickle.Unpickler):
    """Takes what the file names from ``find`` and imports nothing itself."""

    def __init__(self, data: bytes, find: Callable[[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)


class _StandIn:
    """Takes arguments and state as an object of the real class would, and does nothing with them."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Called on an object; a file that sets the state of a class itself lacks an argument here."""


def _stand_in() -> Callable[[str, str], Any]:
    """What stands for each name in one reading."""
    made: dict[tuple[str, str], type] = {}

    def member(enum: Any, name: Any) -> _StandIn:
        if any(made.get(key) is enum and name in names for key, names in _ENUMS.items()):
            return _StandIn()
        raise pickle.UnpicklingError("builtins.getattr has no place in an index")

    def find(module: str, name: str) -> Any:
        key = (module, name)
        if key == _GETATTR:
            return member
        if key in _CONTAINERS:
            return _CONTAINERS[key]
        _check_name(module, name)
        return made.setdefault(key, type("StandIn", (_StandIn,), {}))

    return find


def _real(module: str, name: str) -> Any:
    if (module, name) != _GETATTR:
        _check_name(module, name)
    return getattr(importlib.import_module(module), name)


def _check_name(module: str, name: str) -> None:
    known = (module, name) in _CLASSES or (module, name) in _CONTAINERS
    if not known and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an index")


def _check_opcodes(data: bytes) -> None:
    """No persistent ids, no extension registry, and no memo place far beyond the file, which would cost its size."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(f"{opcode.name} has no place in an index")
        if opcode.name in _PUTS and int(argument or 0) > count:  # type: ignore[call-overload]
            raise pickle.UnpicklingError("a memo place beyond the file")


def _check_form(metadata: Any, tensors_only: bool) -> None:
    if type(metadata) is not Metadata or not isinstance(metadata.state_dict_metadata, dict):
        raise ValueError("no Metadata")
    if not isinstance(metadata.storage_data, Mapping):
        raise ValueError("no storage_data")
    for name, kind in metadata.state_dict_metadata.items():
        if isinstance(kind, TensorStorageMetadata):
            _check_tensor(name, kind)
        elif tensors_only or not isinstance(kind, BytesStorageMetadata):
            raise ValueError(f"{name} is no tensor")
    for index, stored in metadata.storage_data.items():
        file = stored.relative_path
        if not isinstance(index, MetadataIndex) or not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{file!r} is no file of the checkpoint")
        if not all(type(number) is int and number >= 0 for number in (stored.offset, stored.length)):
            raise ValueError(f"{index.fqn}: no place in {file}")
        if getattr(stored, "transform_descriptors", None):
            raise ValueError(f"{index.fqn}: is stored in a form of its own")


def _check_tensor(name: Any, kind: TensorStorageMetadata) -> None:
    fine = isinstance(name, str) and isinstance(kind.size, torch.Size) and isinstance(kind.chunks, list)
    if not fine or not isinstance(kind.properties.dtype, torch.dtype):
        raise ValueError(f"{name!r} is no tensor's entry")
    for chunk in kind.chunks:
        sizes = (chunk.offsets, chunk.sizes) if isinstance(chunk, ChunkStorageMetadata) else ()
        if not sizes or not all(isinstance(one, torch.Size) and len(one) == len(kind.size) for one in sizes):
            raise ValueError(f"{name} has a piece that is none")
