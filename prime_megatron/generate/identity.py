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


def model_digests(folder: str) -> dict[str, str]:
    """sha256 of a model folder's files by name, and under "weights" one of all safetensors files together.

    Raises:
        InputError: no folder, or no safetensors files in it.
    """
    path = Path(folder)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: no safetensors files; name an HF model folder or a checkpoint of a run")
    found = {name: file_digest(path / name) for name in TEXTS if (path / name).is_file()}
    whole = hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in weights).encode())
    return found | {"weights": whole.hexdigest()}


def text_digest(value: object) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
