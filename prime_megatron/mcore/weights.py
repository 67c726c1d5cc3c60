"""Model weights from and to a Hugging Face folder; both follow the shard map."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.errors import InputError
from prime_megatron.families.companions import copy_companions, describe_weights
from prime_megatron.families.folder import (
    DTYPES,
    SINGLE,
    VALUE_HEAD_TENSOR,
    HfFolder,
    SafetensorsStream,
    TensorSpec,
    split_files,
    write_index,
)
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.families.read import value_head_keys
from prime_megatron.mcore.model import HiddenStatesModel, unwrap
from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.parallel.topology import Coordinates, Topology

MAX_FILE_BYTES = 5_000_000_000
"""Largest weights file of an export."""
_PADDED = (
    "word_embeddings.weight",
    "output_layer.weight",
    "linear_qkv.weight",
    "linear_qkv.bias",
    "linear_proj.weight",
)
"""Parameters of which a rank may hold nothing but padding."""


def slices_at(model: HiddenStatesModel, topology: Topology, at: Coordinates) -> list[ShardSlice]:
    """The shard map of the rank at ``at``, for the model (any chunk of it) that this rank holds a part of."""
    return shard_map(
        model.family,
        topology.sizes,
        at,
        model.stage_layers,
        value_head=model.has_value_head,
        transformer_engine=model.transformer_engine,
    )


def local_pieces(chunks: Sequence[Any], topology: Topology) -> Iterator[tuple[Tensor, list[ShardSlice]]]:
    """This rank's parameters, each with its pieces of Hugging Face tensors; none for one that is all padding."""
    models = [unwrap(chunk) for chunk in chunks]
    named = [dict(model.named_parameters()) for model in models]
    by_param: dict[tuple[int, str], list[ShardSlice]] = {}
    for piece in slices_at(models[0], topology, topology.at):
        by_param.setdefault((piece.chunk, piece.param), []).append(piece)
    for chunk, params in enumerate(named):
        for name, param in params.items():
            pieces = by_param.pop((chunk, name), [])
            assert pieces or name.endswith(_PADDED), f"no rule for parameter {name}"
            yield param, pieces
    assert not by_param, f"no parameters for rules {sorted(by_param)}"


@torch.no_grad()
def load_hf(chunks: Sequence[Any], folder: Path | str, topology: Topology) -> None:
    """Fills this rank's parameters from a model folder, reading only the slices it holds.

    Values are cast to the parameters' dtype; padding (of the vocabulary, of attention groups) becomes zero. A
    value head that the folder does not have stays as it is. Every rank checks the whole folder, so that all
    raise the same InputError: missing or truncated file, missing tensor, a shape that config.json contradicts.
    """
    model = unwrap(chunks[0])
    with HfFolder(folder, model.family) as source:
        source.check(value_head=model.has_value_head)
        for param, pieces in local_pieces(chunks, topology):
            if pieces and pieces[0].hf_name == VALUE_HEAD_TENSOR and VALUE_HEAD_TENSOR not in source.files:
                continue
            if sum(math.prod(piece.shape) for piece in pieces) < param.numel():
                param.zero_()
            for piece in pieces:
                param[as_slices(piece.local)].copy_(source.slice(piece.hf_name)[as_slices(piece.hf)])


def export_hf(
    chunks: Sequence[Any],
    folder: Path | str,
    topology: Topology,
    source_folder: Path | str,
    dtype: torch.dtype | None = None,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes the model as a Hugging Face folder; a collective of all ranks, one tensor in memory at a time.

    source_folder gives config, tokenizer, generation config and chat template (every file that holds no
    weights) and, without ``dtype``, each tensor's dtype. Rank 0 writes into a temporary folder beside
    ``folder`` and renames it when it is whole. Raises InputError on every rank: the folder exists and is not
    empty, too little disk, a failing write.
    """
    target = Path(folder)
    plan = _Plan(chunks, topology, Path(source_folder), dtype)
    writer = (
        _Writer(target, plan, Path(source_folder), dtype is not None, max_file_bytes) if topology.rank == 0 else None
    )
    _agree(writer.prepare() if writer else None, topology)
    for spec in plan.specs:
        tensor = plan.gather(spec.name)
        if writer:
            assert tensor is not None
            writer.write(spec.name, tensor)
    _agree(writer.finish() if writer else None, topology)


class _Plan:
    """Who sends which piece of which tensor to rank 0; the same on every rank."""

    def __init__(
        self, chunks: Sequence[Any], topology: Topology, source_folder: Path, dtype: torch.dtype | None
    ) -> None:
        self.topology = topology
        models = [unwrap(chunk) for chunk in chunks]
        self.named = [dict(model.named_parameters()) for model in models]
        self.corrections = models[0].family.corrections
        if models[0].has_value_head:
            self.corrections = self.corrections | value_head_keys(models[0].family)
        self.param_dtype = next(models[0].parameters()).dtype
        self.device = next(models[0].parameters()).device
        owners: dict[str, dict[Any, tuple[int, ShardSlice]]] = {}
        seen: set[tuple[int, int, int, int]] = set()
        for rank in range(topology.sizes.world):
            at = topology.sizes.coordinates(rank)
            place = (at.pipeline, at.tensor, at.expert, at.expert_tensor)
            if place in seen:
                continue
            seen.add(place)
            for piece in slices_at(models[0], topology, at):
                owners.setdefault(piece.hf_name, {}).setdefault(piece.hf, (rank, piece))
        self.owners = {name: list(pieces.values()) for name, pieces in owners.items()}
        with HfFolder(source_folder, models[0].family) as source:
            self.specs = [
                TensorSpec(name, self.owners[name][0][1].hf_shape, dtype or self._dtype_in(source, name))
                for name in sorted(self.owners, key=natural_order)
            ]

    def _dtype_in(self, source: HfFolder, name: str) -> torch.dtype:
        return DTYPES[source.dtype_name(name)] if name in source.files else self.param_dtype

    def gather(self, name: str) -> Tensor | None:
        """The whole tensor on rank 0, on the CPU; None elsewhere."""
        rank = self.topology.rank
        whole = torch.empty(self.owners[name][0][1].hf_shape, dtype=self.param_dtype) if rank == 0 else None
        for owner, piece in self.owners[name]:
            if owner == rank:
                part = self.named[piece.chunk][piece.param].detach()[as_slices(piece.local)]
                if whole is None:
                    dist.send(part.contiguous(), dst=0)
                else:
                    whole[as_slices(piece.hf)] = part.cpu()
            elif whole is not None:
                part = torch.empty(piece.shape, dtype=self.param_dtype, device=self.device)
                dist.recv(part, src=owner)
                whole[as_slices(piece.hf)] = part.cpu()
        return whole


class _Writer:
    """Rank 0's side. Methods return the error instead of raising it: peers are waiting to send."""

    def __init__(self, target: Path, plan: _Plan, source: Path, cast: bool, max_file_bytes: int) -> None:
        self.target = target
        self.source = source
        self.cast = cast
        self.corrections = plan.corrections
        self.partial = target.parent / f".{target.name}.partial"
        self.files = file_names(split_files(plan.specs, max_file_bytes))
        self.error: str | None = None
        self._remaining = [(name, list(specs)) for name, specs in self.files.items()]
        self._left = 0
        self._stream: SafetensorsStream | None = None

    def prepare(self) -> str | None:
        num_bytes = sum(spec.nbytes for specs in self.files.values() for spec in specs)
        try:
            if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
                return f"{self.target}: exists and is not empty; choose another folder"
            self.target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.target.parent).free
            if free < num_bytes:
                return f"{self.target}: the export needs {num_bytes:,} bytes, the disk has {free:,} free"
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir()
        except OSError as error:
            return f"{self.target}: cannot be written ({error})"
        return None

    def write(self, name: str, tensor: Tensor) -> None:
        if self.error:
            return
        try:
            if self._left == 0:
                file, specs = self._remaining.pop(0)
                self._stream = SafetensorsStream(self.partial / file, specs)
                self._left = len(specs)
            assert self._stream is not None
            self._stream.write(name, tensor)
            self._left -= 1
            if self._left == 0:
                self._stream.close()
        except OSError as error:
            self.error = f"{self.target}: write failed ({error}); nothing is left there"

    def _describe(self) -> None:
        specs = [spec for part in self.files.values() for spec in part]
        sizes = {spec.name: math.prod(spec.shape) for spec in specs}
        dtypes = {spec.name: spec.dtype for spec in specs}
        describe_weights(self.partial, sizes, dtypes, cast=self.cast, corrections=self.corrections)

    def finish(self) -> str | None:
        try:
            if not self.error:
                if len(self.files) > 1:
                    write_index(self.partial, self.files)
                copy_companions(self.source, self.partial)
                self._describe()
                if self.target.exists():
                    self.target.rmdir()
                self.partial.rename(self.target)
        except OSError as error:
            self.error = f"{self.target}: write failed ({error}); nothing is left there"
        if self.error:
            shutil.rmtree(self.partial, ignore_errors=True)
        return self.error


def file_names(parts: list[list[TensorSpec]]) -> dict[str, list[TensorSpec]]:
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts)}


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _agree(error: str | None, topology: Topology) -> None:
    """Raises rank 0's error on every rank."""
    messages = [error]
    dist.broadcast_object_list(messages, src=0)
    if messages[0] is not None:
        raise InputError(messages[0])
