"""Both sides of a comparison, read by safetensors and by torch's checkpoint reader: nothing of the converters' code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from prime_megatron.errors import InputError
from prime_megatron.mcore.index import read_index
from prime_megatron.strict_json import read_json

_LAYER = re.compile(r"^decoder\.layers\.(?:(\d+)\.)?(.+)$")
_EXPERT = re.compile(r"^mlp\.experts\.experts\.(?:(\d+)\.)?(.+)$")
EMBEDDING = "model.embed_tokens.weight"
OUTPUT_LAYER = "lm_head.weight"
_BESIDE = ("optimizer.", "rng_state", "rerun_state_machine_state")


class HfSide:
    """A folder's tensors by name, experts apart, whichever way they are stored."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._open: dict[Path, Any] = {}
        self._files = _files(folder, mixtral=self.config["model_type"] == "mixtral")
        self.tied = self.config.get("tie_word_embeddings") is True
        if self.tied and EMBEDDING not in self._files and OUTPUT_LAYER in self._files:
            self._files[EMBEDDING] = self._files.pop(OUTPUT_LAYER)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return sorted(self._files)

    def view(self, name: str) -> Any:
        """A lazy view: get_shape() and slices."""
        path, stored, expert, first, rows = self._files[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        found = self._open[path].get_slice(stored)
        return found if expert is None else _Expert(found, expert, first, rows)


class MegatronSide:
    """A checkpoint's tensors, matrix by matrix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = FileSystemReader(folder)
        self._metadata = read_index(folder)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def matrices(self) -> Iterator[tuple[str, Place, Tensor]]:
        """(stored name, place, values) of every stored piece of every layer and expert."""
        for name, kind in self._metadata.state_dict_metadata.items():
            if isinstance(kind, TensorStorageMetadata) and not name.startswith(_BESIDE):
                for chunk in kind.chunks:
                    for place, matrix in _matrices(name, tuple(chunk.offsets), self._load(name, kind, chunk)):
                        yield name, place, matrix

    def _load(self, name: str, kind: TensorStorageMetadata, chunk: Any) -> Tensor:
        data = torch.empty(chunk.sizes, dtype=kind.properties.dtype)
        zeros, index = torch.Size([0] * len(chunk.sizes)), MetadataIndex(name, chunk.offsets)
        item = ReadItem(LoadItemType.TENSOR, index, zeros, index, zeros, torch.Size(chunk.sizes))
        try:
            self._reader.read_data(LoadPlan([item]), _Into(data)).wait()
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, AssertionError, LookupError):
            raise InputError(f"{self.folder}: {name} cannot be read; copy the checkpoint again") from None
        return data


@dataclass(frozen=True)
class Place:
    """Which parameter a matrix belongs to, and where it begins in it."""

    rest: str
    layer: int | None
    expert: int | None
    half: int | None
    row: int
    column: int


def _matrices(name: str, offsets: tuple[int, ...], data: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """The single layers (and experts) of a chunk."""
    half = None
    if name.endswith(("_w", "_v")) and ".linear_fc1." in name:
        name, half = name[:-2], int(name.endswith("_v"))
    match = _LAYER.match(name)
    if match is None:
        yield Place(name, None, None, half, offsets[0], offsets[1] if len(offsets) > 1 else 0), data
        return
    rest, known = match[2], [match[1]]
    if expert := _EXPERT.match(rest):
        rest, known = f"mlp.{expert[2]}", [match[1], expert[1]]
    stacked = sum(number is None for number in known)
    own = offsets[stacked:]
    for position in product(*(range(size) for size in data.shape[:stacked])):
        counted = iter(offset + index for offset, index in zip(offsets, position, strict=False))
        places = [next(counted) if number is None else int(number) for number in known]
        column = own[1] if len(own) > 1 else 0
        layer, inner = places[0], places[1] if len(places) > 1 else None
        yield Place(rest, layer, inner, half, own[0], column), data[position]


@dataclass(frozen=True)
class _Expert:
    view: Any
    expert: int
    first: int
    rows: int

    def get_shape(self) -> list[int]:
        return [self.rows, self.view.get_shape()[2]]

    def __getitem__(self, index: Any) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self.view[self.expert, self.first + rows.start : self.first + rows.stop, columns]


class _Into(LoadPlanner):
    """Reads one tensor to where it is told."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: there is no state dict."""

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError("a tensor was asked for")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return self.target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: it was read into its place."""


def _files(folder: Path, *, mixtral: bool) -> dict[str, tuple[Path, str, int | None, int, int]]:
    """Tensor -> (file, stored name, expert, first row, rows) as the index, or the one file, says; experts apart."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        where = {k: folder / v for k, v in read_json(index)["weight_map"].items()}
    else:
        path = folder / "model.safetensors"
        with safe_open(path, framework="pt") as opened:
            where = dict.fromkeys(opened.keys(), path)
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    fused = any(name.endswith(".mlp.experts.gate_up_proj") for name in where)
    found: dict[str, tuple[Path, str, int | None, int, int]] = {}
    for name, path in where.items():
        at, _, kind = name.partition(".mlp.experts.")
        block = f"{at}.block_sparse_moe" if mixtral else f"{at}.mlp"
        if kind in ("gate_up_proj", "down_proj"):
            with safe_open(path, framework="pt") as opened:
                experts, rows, _ = opened.get_slice(name).get_shape()
            for expert in range(experts):
                own = f"{block}.experts.{expert}."
                if kind == "down_proj":
                    found[f"{own}{names[2]}.weight"] = (path, name, expert, 0, rows)
                else:
                    found[f"{own}{names[0]}.weight"] = (path, name, expert, 0, rows // 2)
                    found[f"{own}{names[1]}.weight"] = (path, name, expert, rows // 2, rows // 2)
        elif fused and mixtral and name.endswith(".mlp.gate.weight"):
            found[name.replace(".mlp.", ".block_sparse_moe.")] = (path, name, None, 0, 0)
        else:
            found[name] = (path, name, None, 0, 0)
    return found
