"""What a run reads, told by content: a model folder or a data file may lie elsewhere when the run is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prime_megatron.data.files import data_files
from prime_megatron.errors import InputError
from prime_megatron.strict_json import read_json

Contents = dict[str, dict[str, str]]
"""Config key -> what it holds -> digest."""
FOLDERS = ("model", "reference", "models.policy.path", "models.prm.path", "models.critic.path", "models.reference",
           "models.teacher")  # fmt: skip
FILES = ("data.train", "rollout.replay")
_TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json", "vocab.txt",
    "spiece.model", "tekken.json", "chat_template.json",
)  # fmt: skip
_MORE_TEXTS = ("*.py", "additional_chat_templates/*")
_WHOLE = "weights, every byte"
_WHOLE_BYTES = 2**30
"""Weights of so many bytes are read whole, about a second's work; larger ones at evenly spaced places."""
_SAMPLE_BYTES = 64 * 1024
_SAMPLES = 8


def contents_of(config: dict[str, Any]) -> Contents:
    """Digests of every folder and file that a dumped config (of any kind of run) names and whose content matters.

    Weights of more than 1 GiB count by their headers and by samples of their bytes, everything else whole. Raises
    InputError: unreadable.
    """
    found: Contents = {}
    try:
        for key in FOLDERS:
            path = _value(config, key)
            if path is not None:
                found[key] = folder_contents(Path(path))
        for key in FILES:
            value = _value(config, key)
            paths = value if isinstance(value, list) else [] if value is None else [value]
            if key == "data.train":
                paths = data_files(paths)
            if paths:
                found[key] = {f"file {i + 1}": _whole([Path(path)]) for i, path in enumerate(paths)}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return found


def changed_parts(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs between two contents of one key. Checkpoints of earlier versions sampled all weights."""
    parts = saved.keys() | now.keys() if _WHOLE in saved else (saved.keys() | now.keys()) - {_WHOLE}
    changed = {part.partition(",")[0] for part in parts if saved.get(part) != now.get(part)}
    return sorted(changed)


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = None if value is None else value.get(name)
    return value


def folder_contents(folder: Path) -> dict[str, str]:
    """Digests of what a model folder holds, by file, the weights together. Raises OSError: unreadable."""
    names = [*_TEXTS, *(path.relative_to(folder).as_posix() for more in _MORE_TEXTS for path in folder.glob(more))]
    found = {name: _whole([folder / name]) for name in sorted(names) if (folder / name).is_file()}
    weights = list(_weights(folder))
    if weights:
        found["weights"] = _sampled(weights)
    if weights and sum(path.stat().st_size for path in weights) <= _WHOLE_BYTES:
        found[_WHOLE] = _whole(weights)
    return found


def _weights(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index)["weight_map"]
        yield from (folder / name for name in sorted(set(named.values())))
    elif (folder / "model.safetensors").is_file():
        yield folder / "model.safetensors"


def _whole(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _sampled(paths: list[Path]) -> str:
    """Of safetensors files: the header whole, the data at evenly spaced places."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(f"{path.name} {size} {length}".encode() + file.read(min(length, size)))
            for sample in range(_SAMPLES):
                file.seek(8 + length + max(0, size - 8 - length - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
