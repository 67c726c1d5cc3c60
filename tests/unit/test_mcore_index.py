"""The index of a distributed checkpoint: what torch writes is read, in every protocol; anything else is refused."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from prime_megatron.errors import InputError
from prime_megatron.mcore.index import read_index
from tests.support.payload import Payload

FILESYSTEM = "torch.distributed.checkpoint.filesystem"


def index(**changes: Any) -> Metadata:
    """One tensor, the plan of one rank, and all that beside them an index has."""
    properties, size = TensorProperties(dtype=torch.bfloat16), torch.Size([4])
    chunk, place = ChunkStorageMetadata(torch.Size([0]), size), MetadataIndex("a", torch.Size([0]))
    metadata = Metadata(
        {"a": TensorStorageMetadata(properties, size, [chunk])},
        OrderedDict(a=("a", {1})),
        {place: _StorageInfo("__0_0.distcp", 0, 10)},
        StorageMeta(checkpoint_id=Path("/a"), modules=["a"]),
    )
    metadata.all_local_plans = [  # megatron-core's
        SavePlan([WriteItem(place, WriteItemType.SHARD, TensorWriteData(chunk, properties, size))])
    ]
    for name, value in changes.items():
        setattr(metadata, name, value)
    return metadata


def put(folder: Path, content: Any, protocol: int = 4) -> Path:
    (folder / ".metadata").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return folder


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_index_is_read(protocol: int, tmp_path: Path) -> None:
    found = read_index(put(tmp_path, index(), protocol), tensors_only=True)
    assert found == index() and found.all_local_plans == index().all_local_plans


def spelled(function: Any, *arguments: Any) -> bytes:
    """An index whose enumeration members are calls of the function."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, _MEM_FORMAT_ENCODING):
                return function, arguments or (type(obj), obj.name)
            return NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer, 4).dump(index())
    return buffer.getvalue()


def test_members_as_python_3_11_first_wrote_them(tmp_path: Path) -> None:
    assert read_index(put(tmp_path, spelled(getattr))) == index()
    for arguments in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro"), (_MEM_FORMAT_ENCODING, "__class__")):
        with pytest.raises(InputError, match="getattr has no place"):
            read_index(put(tmp_path, spelled(getattr, *arguments)))


def name(module: str, attribute: str) -> bytes:
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute)]
    return b"\x80\x04" + b"".join(texts) + b"\x93"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Ran out of input|pickle exhausted"),
        (b"junk", ""),
        (b"\x80\x04N.", "no Metadata"),
        (name("os", "system") + b".", "os.system has no place"),
        (name("torch", "load") + b".", "torch.load has no place"),
        (name("torch", "serialization.os") + b".", "serialization.os has no place"),
        (name(FILESYSTEM, "io.FileIO") + b".", "io.FileIO has no place"),
        (name(FILESYSTEM, "FileSystemWriter") + b".", "FileSystemWriter has no place"),
        (name("builtins", "eval") + b".", "builtins.eval has no place"),
        (name(FILESYSTEM, "_StorageInfo") + b"N}\x8c\x01aK\x01s\x86b.", "__setstate__"),
        (b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00aR.", "os.system has no place"),
        (b'(S"a"\nios\nsystem\n.', "INST has no place"),
        (b"\x80\x04r\xff\xff\xff\xffN.", "a memo place beyond the file"),
        (b"\x80\x04\x82\x01.", "EXT1 has no place"),
        (b"\x80\x04NQ.", "BINPERSID has no place"),
    ],
)
def test_anything_else_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"\.metadata: not the index of a distributed checkpoint \(.*({said})[^\n]*$"):
        read_index(put(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"storage_data": None}, "no storage_data"),
        ({"state_dict_metadata": None}, "no Metadata"),
        ({"state_dict_metadata": {"a": 1}}, "a is no tensor"),
        ({"state_dict_metadata": {"a": TensorStorageMetadata(TensorProperties(), torch.Size([4]), [1])}}, "a piece"),
        ({"storage_data": {MetadataIndex("a"): _StorageInfo("../a", 0, 1)}}, "no file of the checkpoint"),
        ({"storage_data": {MetadataIndex("a"): _StorageInfo("/etc/passwd", 0, 1)}}, "no file of the checkpoint"),
        ({"storage_data": {MetadataIndex("a"): _StorageInfo("a", -1, 1)}}, "no place in a"),
        ({"storage_data": {"a": _StorageInfo("a", 0, 1)}}, "no file of the checkpoint"),
        ({"storage_data": {MetadataIndex("a"): _StorageInfo("a", 0, 1, ["zstd"])}}, "a form of its own"),
    ],
)
def test_an_index_of_another_form_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_index(put(tmp_path, index(**changes)))


def test_a_payload_anywhere_in_an_index_never_runs(tmp_path: Path) -> None:
    for place in ("planner_data", "storage_meta", "all_local_plans", "version", "storage_data", "state_dict_metadata"):
        with pytest.raises(InputError, match="has no place in an index"):
            read_index(put(tmp_path, index(**{place: {"a": Payload(tmp_path / "ran")}})))
    assert not (tmp_path / "ran").exists()


def test_bytes_are_a_tensor_nowhere(tmp_path: Path) -> None:
    """A converter passes over them; a resume, whose reader would unpickle them, does not."""
    put(tmp_path, index(state_dict_metadata={"a": BytesStorageMetadata()}))
    read_index(tmp_path)
    with pytest.raises(InputError, match="a is no tensor"):
        read_index(tmp_path, tensors_only=True)
