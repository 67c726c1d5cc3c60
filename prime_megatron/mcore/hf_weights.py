"""Model weights from and to a Hugging Face safetensors folder, slice by slice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prime_megatron.errors import InputError
from prime_megatron.mcore.hf_map import shard_map
from prime_megatron.mcore.model import unwrap
from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.parallel.topology import Topology

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class HfFolder:
    """The tensors of a model folder, opened lazily; every fault is one InputError that names file and tensor."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self.files = self._locate()

    def __enter__(self) -> HfFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _locate(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if index.exists():
            try:
                weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{index}: not a safetensors index (no weight_map)") from None
            files = {name: self.folder / file for name, file in weights.items()}
            for path in sorted(set(files.values())):
                if not path.exists():
                    raise InputError(f"{path}: missing, though {INDEX} names it; download the model again")
            return files
        path = self.folder / SINGLE
        if not path.exists():
            raise InputError(f"{self.folder}: neither {SINGLE} nor {INDEX}; a model folder has safetensors weights")
        return dict.fromkeys(self._handle(path).keys(), path)

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from None
        return self._open[path]

    def slice(self, name: str) -> Any:
        """A lazy view of one tensor."""
        if name not in self.files:
            raise InputError(f"{self.folder}: tensor {name} is missing, though config.json asks for it")
        path = self.files[name]
        handle = self._handle(path)
        if name not in set(handle.keys()):
            raise InputError(f"{path}: tensor {name} is missing, though {INDEX} says it is there")
        return handle.get_slice(name)

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """InputError where the file's tensor is not of the shape that config.json implies."""
        found = tuple(self.slice(name).get_shape())
        if found != shape:
            raise InputError(f"{self.files[name]}: tensor {name} is {list(found)}, config.json says {list(shape)}")


def model_slices(chunks: Sequence[Any], topology: Topology) -> list[ShardSlice]:
    """The shard map of this rank's chunks."""
    model = unwrap(chunks[0])
    layout = model.config.pipeline_model_parallel_layout
    stages = None if layout is None else _stage_layers(layout, topology)
    return shard_map(
        model.family,
        topology.sizes,
        topology.at,
        stages,
        value_head=model.has_value_head,
        transformer_engine=model.transformer_engine,
    )


def _stage_layers(layout: Any, topology: Topology) -> list[int]:
    from megatron.core.transformer.enums import LayerType

    return [
        sum(row.count(LayerType.decoder) for row in layout.layout[stage]) for stage in range(topology.sizes.pipeline)
    ]


def parameters_by_slice(chunks: Sequence[Any], topology: Topology) -> Iterator[tuple[ShardSlice, torch.Tensor]]:
    """Each slice with the whole local parameter that it is a part of."""
    named = [dict(unwrap(chunk).named_parameters()) for chunk in chunks]
    for piece in model_slices(chunks, topology):
        yield piece, named[piece.chunk][piece.param]


def load_hf(chunks: Sequence[Any], folder: Path | str, topology: Topology) -> None:
    """Fills this rank's parameters from a model folder, reading only the slices it holds.

    Values are cast to the parameters' dtype; padding rows of the vocabulary become zero. A value head that
    the folder does not have stays as it is. Raises InputError (missing or truncated file, missing tensor,
    wrong shape).
    """
    with HfFolder(folder) as source, torch.no_grad():
        filled: set[tuple[int, str]] = set()
        for piece, param in parameters_by_slice(chunks, topology):
            if piece.param == "value_head.weight" and piece.hf_name not in source.files:
                continue
            source.check_shape(piece.hf_name, piece.hf_shape)
            if (piece.chunk, piece.param) not in filled:
                param.zero_()
                filled.add((piece.chunk, piece.param))
            param[as_slices(piece.local)].copy_(source.slice(piece.hf_name)[as_slices(piece.hf)])
