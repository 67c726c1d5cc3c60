"""A checkpoint that somebody else wrote, its manifest made to fit: nothing in it runs, one line says what is wrong."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from prime_megatron.checkpoint.layout import MANIFEST_FILE, MARKER_FILE
from prime_megatron.checkpoint.manifest import file_sha256, publish, write_manifest
from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.mcore.index import read_index
from prime_megatron.run.assemble import open_parts
from prime_megatron.run.output_dir import MARKER
from prime_megatron.run.written import is_written
from tests.support.payload import Payload
from tests.support.ranks import run_ranks
from tests.support.resume_runs import at, stopped_at, toy, train

STEP = "step-00000001"


def whole(target: Path) -> bytes:
    return pickle.dumps(Payload(target))


def index_of(folder: Path) -> Metadata:
    metadata = read_index(folder / "policy")
    assert isinstance(metadata, Metadata)
    return metadata


def put_index(folder: Path, metadata: Metadata) -> None:
    (folder / "policy" / ".metadata").write_bytes(pickle.dumps(metadata))


def index_whole(folder: Path, ran: Path) -> None:
    (folder / "policy" / ".metadata").write_bytes(whole(ran))


def index_beside_a_whole_one(folder: Path, ran: Path) -> None:
    metadata = index_of(folder)
    metadata.planner_data = {"mine": Payload(ran)}
    put_index(folder, metadata)


def index_of_bytes(folder: Path, ran: Path) -> None:
    """Every class is an index's own, and torch would unpickle what it points to."""
    metadata = index_of(folder)
    shard = sorted((folder / "policy").glob("*.distcp"))[0]
    torch.save(Payload(ran), shard)
    for name in metadata.state_dict_metadata:
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
    for stored in metadata.storage_data.values():
        stored.relative_path, stored.offset, stored.length = shard.name, 0, shard.stat().st_size
    put_index(folder, metadata)


def index_of_a_file_elsewhere(folder: Path, ran: Path) -> None:
    metadata = index_of(folder)
    next(iter(metadata.storage_data.values())).relative_path = "../../../other.distcp"
    put_index(folder, metadata)


def index_by_a_dotted_name(folder: Path, ran: Path) -> None:
    """FileIO empties the file: torch's module has `io` as an attribute."""
    text = b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x09io.FileIO\x93"
    (folder / "policy" / ".metadata").write_bytes(text + pickle.dumps((str(ran), "w"))[2:-1] + b"R.")


def index_that_changes_a_class(folder: Path, ran: Path) -> None:
    text = b"\x80\x04\x8c\x27torch.distributed.checkpoint.filesystem\x8c\x0c_StorageInfo\x93N}\x8c\x01aK\x01s\x86b."
    (folder / "policy" / ".metadata").write_bytes(text)


def index_empty(folder: Path, ran: Path) -> None:
    (folder / "policy" / ".metadata").write_bytes(b"")


def shard(folder: Path, ran: Path) -> None:
    for path in (folder / "policy").glob("*.distcp"):
        path.write_bytes(whole(ran) * 2000)


def shard_empty(folder: Path, ran: Path) -> None:
    for path in (folder / "prm").glob("*.distcp"):
        path.write_bytes(b"")


def common(folder: Path, ran: Path) -> None:
    torch.save(Payload(ran), folder / "policy" / "common.pt")


def backend(folder: Path, ran: Path) -> None:
    (folder / "policy" / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')


FILES = ("policy/metadata.json", "policy/position.json", "state.json", "rng.safetensors")
NESTED = b"[" * 5000 + b"]" * 5000
PLANTED: dict[str, Callable[[Path, Path], Any]] = {
    one.__name__: one
    for one in (
        index_whole, index_beside_a_whole_one, index_of_bytes, index_of_a_file_elsewhere, index_by_a_dotted_name,
        index_that_changes_a_class, index_empty, shard, shard_empty, common, backend,
    )
}  # fmt: skip
for file in FILES:
    PLANTED[f"{file} payload"] = lambda folder, ran, file=file: (folder / file).write_bytes(whole(ran))
    PLANTED[f"{file} empty"] = lambda folder, ran, file=file: (folder / file).write_bytes(b"")
    PLANTED[f"{file} nested"] = lambda folder, ran, file=file: (folder / file).write_bytes(NESTED)
    PLANTED[f"{file} bare"] = lambda folder, ran, file=file: (folder / file).write_bytes(b'{"step": 1}')


def key_gone(folder: Path, ran: Path, key: str, value: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {key: value}))


for key, value in {"config": {}, "parts": {}, "layout": [], "contents": 3, "step": "one"}.items():
    PLANTED[f"state {key}"] = lambda folder, ran, key=key, value=value: key_gone(folder, ran, key, value)


def plant_model(folder: Path, ran: Path) -> None:
    """Files that other programs unpickle or run, beside a whole model."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "model.ckpt", "common.pt"):
        torch.save(Payload(ran), folder / name)
    (folder / "modeling_mine.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    for name, classes in (("config.json", {"AutoConfig": "modeling_mine.A", "AutoModelForCausalLM": "modeling_mine.B"}),
                          ("tokenizer_config.json", {"AutoTokenizer": ["modeling_mine.C", None]})):  # fmt: skip
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(raw | {"auto_map": classes}))


def rehash(folder: Path) -> None:
    """A manifest that fits whatever lies there."""
    for name in (MANIFEST_FILE, MARKER_FILE):
        (folder / name).unlink()
    temporary = folder.with_name("temporary")
    folder.rename(temporary)
    write_manifest(temporary, {})
    publish(temporary, folder)


def resume_each(text: str, folders: dict[str, str]) -> dict[str, str]:
    """What the run says to each folder, once to the checkpoint by its name, once to --resume auto."""
    said = {}
    with open_parts(TrainConfig.model_validate_json(text), resume="auto", overwrite=False) as parts:
        for number, (name, folder) in enumerate(folders.items()):
            parts.checkpoints.root = Path(folder) / "checkpoints"
            try:
                parts.checkpoints.resume("auto" if number % 2 else str(parts.checkpoints.root / STEP))
            except InputError as error:
                said[name] = str(error)
            except Exception:
                said[name] = traceback.format_exc()[-1500:]
            else:
                said[name] = "went on"
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Path]]:
    """(what was said, where the payload would have left its mark), by what was planted."""
    folder = tmp_path_factory.mktemp("foreign")
    config = toy(folder, run={"steps": 1})
    plant_model(folder / "model", folder / "ran-by-a-model")
    assert train(config, 1) == {0}
    assert not (folder / "ran-by-a-model").exists()
    names = {entry.name for entry in (folder / "straight").iterdir()}
    assert all(is_written(name) for name in names - {MARKER}), "--overwrite would leave what a run writes"
    folders, marks = {}, {}
    for number, (name, plant) in enumerate(PLANTED.items()):
        output = folder / f"planted-{number}"
        folders[name], marks[name] = str(output), folder / f"ran-{number}"
        stopped_at(folder / "straight", 1, output)
        plant(output / "checkpoints" / STEP, marks[name])
        rehash(output / "checkpoints" / STEP)
    text = json.dumps(at(config, folder / "straight", run={"steps": 2}))
    return run_ranks(resume_each, 1, text, folders, timeout_s=200)[0], marks


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_runs_and_one_line_says_why(name: str, said: Any) -> None:
    lines, marks = said
    assert not marks[name].exists()
    assert lines[name] != "went on"
    assert "Traceback" not in lines[name], lines[name]
    assert "planted-" in lines[name]
    assert "\n" not in lines[name] or "changes the meaning of the run" in lines[name]
    assert len(lines[name]) < 600


def test_the_planted_are_whole_to_their_manifests(tmp_path: Path) -> None:
    """So that what is tested is the reading and not the hash."""
    from prime_megatron.checkpoint.manifest import damage

    path = tmp_path / STEP
    path.mkdir()
    (path / "a").write_bytes(b"1")
    for name in (MANIFEST_FILE, MARKER_FILE):
        (path / name).write_text("")
    rehash(path)
    assert damage(path) is None and file_sha256(path / "a")
