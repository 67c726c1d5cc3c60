"""A Hugging Face folder to a Megatron distributed checkpoint, a block of rows in memory at a time.

No model is built and no process group is needed. The checkpoint keeps the source folder's other files in its ``hf``
folder, which the way back copies.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.serialization import get_crc32_options, set_crc32_options

from prime_megatron.convert.read import HfRows
from prime_megatron.convert.target import (
    COMPANIONS,
    DTYPES_FILE,
    ConversionPlan,
    OnBytes,
    cast,
    common_dtype,
    make_plan,
    rows_per_block,
    writing,
)
from prime_megatron.convert.tensor_map import Entry, TensorMap, tensor_map
from prime_megatron.convert.verify import compare
from prime_megatron.errors import InputError
from prime_megatron.families.companions import copy_companions, describe_weights, dtype_name
from prime_megatron.families.folder import OUTPUT_LAYER, VALUE_HEAD_TENSOR, HfFolder
from prime_megatron.families.read import names_value_head, read_config


class HfToMegatron:
    """One conversion; reading the source's headers is all that making it costs.

    Args:
        source: HF folder.
        target: checkpoint folder to make.
        dtype: of the output; None keeps every tensor's own.
    Raises:
        InputError: whatever is wrong with the source.

    ``changes`` says, after ``run``, what config.json says otherwise than the source's.
    """

    changes: tuple[str, ...] = ()

    def __init__(self, source: Path, target: Path, dtype: torch.dtype | None) -> None:
        self.source, self.target, self.dtype = source, target, dtype
        self.family = read_config(source, value_head=names_value_head(source))
        with HfFolder(source, self.family) as self.folder:
            # A folder with an output layer of its own is a policy's: a head beside it is named by check.
            value_head = VALUE_HEAD_TENSOR in self.folder.files and OUTPUT_LAYER not in self.folder.files
            self.folder.check(value_head=value_head)
        self.map = tensor_map(self.family, value_head=value_head)
        with HfRows(self.folder, self.map.hf_shapes) as rows:
            self.hf_dtypes = {name: rows.dtype(name) for name in self.map.hf_shapes}
        found: dict[str, list[torch.dtype]] = {}
        for entry in self.map.entries:
            found.setdefault(entry.key, []).extend(self.hf_dtypes[run.hf_name] for run in entry.runs)
        self.dtypes = {key: dtype or common_dtype(iter(own)) for key, own in found.items()}

    def plan(self) -> ConversionPlan:
        """The numbers."""
        num_bytes = sum(prod(shape) * self.dtypes[key].itemsize for key, shape in self.map.shapes.items())
        return make_plan(
            self.family.architecture, self.map.shapes, self.dtypes, num_bytes, ("__0_0.distcp",), self.target
        )

    def run(self, on_bytes: OnBytes) -> None:
        """Convert. Raises InputError: the target exists, too little disk, a failing write or read."""
        with writing(self.target, self.plan().num_bytes) as partial, HfRows(self.folder, self.map.hf_shapes) as rows:
            planner = _Planner(self.map, self.dtypes, lambda block: self._fill(block, rows, on_bytes))
            writer = FileSystemWriter(partial, thread_count=1, sync_files=False)
            checksums = get_crc32_options()
            set_crc32_options(False)  # half of the CPU time; safetensors has none either, --verify compares values
            try:
                dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
            except CheckpointException as failed:
                raise _cause(failed) from None
            finally:
                set_crc32_options(checksums)
            # As megatron-core's own save: what it pickles beside the tensors is empty here.
            torch.save({}, partial / "common.pt")
            backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
            backends |= {"common_backend": "torch", "common_backend_version": 1}
            (partial / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")
            (partial / COMPANIONS).mkdir()
            copy_companions(self.source, partial / COMPANIONS)
            written = self.hf_dtypes if self.dtype is None else dict.fromkeys(self.map.hf_shapes, self.dtype)
            how = {"cast": self.dtype is not None, "corrections": self.family.corrections}
            self.changes = describe_weights(partial / COMPANIONS, self._sizes(), written, **how)
            names = {name: dtype_name(dtype) for name, dtype in written.items()}
            (partial / DTYPES_FILE).write_text(json.dumps(names, indent=1), encoding="utf-8")

    def verify(self, on_bytes: OnBytes) -> str:
        """Read both folders again, by other code; returns what came out. Raises InputError: a difference."""
        return compare(self.source, self.target, on_bytes, written=self.target, narrowed=self.dtype)

    def _sizes(self) -> dict[str, int]:
        return {name: prod(shape) for name, shape in self.map.hf_shapes.items()}

    def _fill(self, block: _Block, rows: HfRows, on_bytes: OnBytes) -> Tensor:
        entry, dtype = block.entry, self.dtypes[block.entry.key]
        whole = torch.empty((block.stop - block.start, *entry.shape[1:]), dtype=dtype)
        for run in entry.runs:
            low, high = max(run.start, block.start), min(run.stop, block.stop)
            if low >= high:
                continue
            first = run.hf_start + low - run.start
            part = cast(rows.rows(run.hf_name, first, first + high - low), dtype, f"{self.source}: {run.hf_name}")
            if (low, high) == (block.start, block.stop):
                whole = part
            else:
                whole[low - block.start : high - block.start] = part
        on_bytes(whole.nbytes)
        return whole.reshape(*(1,) * len(entry.place), *whole.shape)


@dataclass(frozen=True)
class _Block:
    """Rows start to stop of an entry."""

    entry: Entry
    start: int
    stop: int


def _blocks(tensors: TensorMap, dtypes: dict[str, torch.dtype]) -> Iterator[_Block]:
    for entry in tensors.entries:
        step = rows_per_block(entry.shape[1:], dtypes[entry.key])
        for start in range(0, entry.shape[0], step):
            yield _Block(entry, start, min(start + step, entry.shape[0]))


class _Planner(SavePlanner):
    """Writes every block of the map as one chunk; its values are made when the writer asks."""

    def __init__(self, tensors: TensorMap, dtypes: dict[str, torch.dtype], fill: Callable[[_Block], Tensor]) -> None:
        self.tensors, self.dtypes, self.fill = tensors, dtypes, fill
        self.blocks: dict[MetadataIndex, _Block] = {}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: there is no state dict."""

    def create_local_plan(self) -> SavePlan:
        items = []
        for block in _blocks(self.tensors, self.dtypes):
            entry = block.entry
            place, lead = entry.place, (1,) * len(entry.place)
            offsets = torch.Size((*place, block.start, *(0,) * (len(entry.shape) - 1)))
            sizes = torch.Size((*lead, block.stop - block.start, *entry.shape[1:]))
            index = MetadataIndex(entry.key, offsets)
            self.blocks[index] = block
            data = TensorWriteData(
                ChunkStorageMetadata(offsets, sizes),
                TensorProperties(dtype=self.dtypes[entry.key]),
                torch.Size(self.tensors.shapes[entry.key]),
            )
            items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self.tensors.objects]
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        described: dict[str, Any] = {name: BytesStorageMetadata() for name in self.tensors.objects}
        for item in all_plans[0].items:
            data = item.tensor_data
            if data is not None:
                empty = TensorStorageMetadata(data.properties, data.size, [])
                described.setdefault(item.index.fqn, empty).chunks.append(data.chunk)
        return all_plans, Metadata(described)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type is not WriteItemType.BYTE_IO:
            return self.fill(self.blocks[write_item.index])
        nothing = io.BytesIO()
        torch.save([None], nothing)  # one object a key, as megatron-core packs them
        nothing.seek(0)
        return nothing


def _cause(failed: CheckpointException) -> Exception:
    """What torch's writer wrapped."""
    for error, _ in failed.failures.values():
        if isinstance(error, InputError | OSError):
            return error
    return failed
