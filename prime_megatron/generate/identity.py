"""What a model is, told by content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from prime_megatron.errors import InputError
from prime_megatron.generate.tables import file_digest

TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
"""Files that decide what a model reads and when it ends."""


def text_digests(folder: str) -> dict[str, str]:
    """sha256 of the files of a model folder that decide what it reads, by name."""
    return {name: file_digest(Path(folder) / name) for name in TEXTS if (Path(folder) / name).is_file()}


def model_digests(folder: str) -> dict[str, str]:
    """`text_digests`, and under "weights" the sha256 of all safetensors files together.

    Raises:
        InputError: no folder, or no safetensors files in it.
    """
    weights = sorted(Path(folder).glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: no safetensors files; name an HF model folder or a checkpoint of a run")
    whole = hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in weights).encode())
    return text_digests(folder) | {"weights": whole.hexdigest()}


def text_digest(value: object) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
