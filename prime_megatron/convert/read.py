"""Rows of tensors from both kinds of model folder, read when they are asked for and never mapped into memory."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from prime_megatron.convert.forms import NOT_OF_THE_MODEL, Chunk, chunks_of, stacked_shapes
from prime_megatron.errors import InputError
from prime_megatron.families.folder import DTYPES, HfFolder
from prime_megatron.families.fused import View
from prime_megatron.mcore.index import INDEX_FILE, read_index

CACHE_BYTES = 256 * 2**20
"""Chunks of a Megatron checkpoint that are kept while the tensors made of them are written."""


@dataclass(frozen=True)
class _Stored:
    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class HfRows:
    """Rows of a checked folder's tensors, each from the file that the folder's index names."""

    def __init__(self, folder: HfFolder, names: Collection[str]) -> None:
        self._stack = ExitStack()
        self._open: dict[Path, IO[bytes]] = {}
        self._stored: dict[str, _Stored] = {}
        headers = {path: _read_header(path) for path in sorted({folder.files[name] for name in names})}
        for name in names:
            found = headers[folder.files[name]]
            view = folder.views.get(name, None)
            self._stored[name] = found[name] if view is None else _part(found[view.stored], view)

    def __enter__(self) -> HfRows:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def dtype(self, name: str) -> torch.dtype:
        """The tensor's dtype."""
        return self._stored[name].dtype

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, in its dtype. Raises InputError: the file ends too early."""
        stored = self._stored[name]
        if stored.path not in self._open:
            self._open[stored.path] = self._stack.enter_context(stored.path.open("rb", buffering=0))
        part = torch.empty((stop - start, *stored.shape[1:]), dtype=stored.dtype)
        row_bytes = prod(stored.shape[1:]) * stored.dtype.itemsize
        file = self._open[stored.path]
        file.seek(stored.start + start * row_bytes)
        _read_into(file, part, stored.path)
        return part


def _read_header(path: Path) -> dict[str, _Stored]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, row in header.items():
        if row["dtype"] in DTYPES:
            start = 8 + length + row["data_offsets"][0]
            found[name] = _Stored(path, start, DTYPES[row["dtype"]], tuple(row["shape"]))
    return found


def _part(stored: _Stored, view: View) -> _Stored:
    """An expert's rows lie in one piece."""
    if view.expert is None:
        return stored
    _, rows, columns = stored.shape
    first = (view.expert * rows + view.start) * columns * stored.dtype.itemsize
    return _Stored(stored.path, stored.start + first, stored.dtype, (view.rows, columns))


def _read_into(file: IO[bytes], part: Tensor, path: Path) -> None:
    view = memoryview(part.reshape(-1).view(torch.uint8).numpy())
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise InputError(f"{path}: ends too early; copy it again")
        view = view[count:]


class MegatronRows:
    """Rows of a Megatron distributed checkpoint (torch_dist), whatever layout wrote it.

    Raises:
        InputError: no such checkpoint, or not of this format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._open: dict[str, IO[bytes]] = {}
        self._cache: OrderedDict[tuple[str, tuple[int, ...]], Tensor] = OrderedDict()
        self._cached_bytes = 0
        self._metadata = _read_metadata(self.folder)
        kinds = self._metadata.state_dict_metadata
        stored = {
            name: kind
            for name, kind in kinds.items()
            if isinstance(kind, TensorStorageMetadata) and not name.startswith(NOT_OF_THE_MODEL)
        }
        self.shapes = stacked_shapes(stored, str(self.folder))
        """Shape by key, all layers in front, of the model's tensors."""
        self._dtypes = {name: kind.properties.dtype for name, kind in stored.items()}
        self._chunks: dict[tuple[str, int], list[Chunk]] = {}
        for name, kind in stored.items():
            for key, chunk in chunks_of(name, kind):
                layers = range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0])
                for layer in layers if key.startswith("decoder.layers.") else (0,):
                    self._chunks.setdefault((key, layer), []).append(chunk)

    def __enter__(self) -> MegatronRows:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def dtype(self, key: str, place: tuple[int, ...]) -> torch.dtype:
        """Of the tensor at ``place`` (layer, expert)."""
        return self._dtypes[self._at(key, place)[0].name]

    def rows(self, key: str, place: tuple[int, ...], start: int, stop: int, rest: tuple[int, ...]) -> Tensor:
        """Rows start to stop of the tensor at ``place`` (layer, expert), cut to ``rest`` beyond the first dimension.

        A checkpoint of a layout that pads (vocabulary, attention groups) is larger than the model; the padding stays
        behind. Raises InputError: a chunk is missing or damaged.
        """
        return self.region(key, place, ((start, stop), *((0, size) for size in rest)))

    def region(self, key: str, place: tuple[int, ...], inner: tuple[tuple[int, int], ...]) -> Tensor:
        """The part within (low, high) of each dimension of the tensor at ``place``; errors as ``rows``."""
        wanted = [*((index, index + 1) for index in place), *inner]
        whole = torch.empty([high - low for low, high in wanted], dtype=self.dtype(key, place))
        filled = 0
        for chunk in self._at(key, place):
            box = [
                (max(low, offset), min(high, offset + size))
                for (low, high), offset, size in zip(wanted, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(low >= high for low, high in box):
                continue
            data = self._load(chunk).reshape(chunk.sizes)
            begins = [low for low, _ in wanted]
            whole[_within(box, begins)] = data[_within(box, chunk.offsets)]
            filled += prod(high - low for low, high in box)
        if filled != whole.numel():
            raise self._incomplete(key)
        return whole.reshape([high - low for low, high in inner])

    def _at(self, key: str, place: tuple[int, ...]) -> list[Chunk]:
        found = [
            chunk
            for chunk in self._chunks.get((key, place[0] if place else 0), ())
            if all(o <= at < o + n for at, o, n in zip(place, chunk.offsets, chunk.sizes, strict=False))
        ]
        if not found:
            raise self._incomplete(key)
        return found

    def _incomplete(self, key: str) -> InputError:
        return InputError(f"{self.folder}: {key} is incomplete; the checkpoint was not written to its end")

    def _load(self, chunk: Chunk) -> Tensor:
        name = (chunk.name, chunk.origin)
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        stored = self._metadata.storage_data[MetadataIndex(chunk.name, torch.Size(chunk.origin))]
        path = self.folder / stored.relative_path
        try:
            if stored.relative_path not in self._open:
                self._open[stored.relative_path] = self._stack.enter_context(path.open("rb"))
            view = _FileView(self._open[stored.relative_path], stored.offset, stored.length)
            data: Tensor = torch.load(view, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
            raise InputError(
                f"{path}: missing or damaged where {chunk.name} is stored; copy the checkpoint again"
            ) from None
        self._cache[name] = data
        self._cached_bytes += data.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return data


def _within(box: Sequence[tuple[int, int]], origin: Sequence[int]) -> tuple[slice, ...]:
    """The box as an index into a tensor that begins at origin."""
    return tuple(slice(low - begin, high - begin) for (low, high), begin in zip(box, origin, strict=True))


class _FileView(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._length - self._at))]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) if len(view) else 0  # type: ignore[attr-defined]
        self._at += count
        return int(count)


def _read_metadata(folder: Path) -> Metadata:
    if not (folder / INDEX_FILE).exists():
        raise InputError(f"{folder}: no .metadata; name the folder of a Megatron distributed checkpoint (torch_dist)")
    return read_index(folder)
