"""The files of a model folder beside its weights: copied to what is written, and made to describe it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prime_megatron.strict_json import read_json

_WEIGHT_FILE = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack)(\.index\.json)?$")


def copy_companions(source: Path, target: Path) -> None:
    """Copies every file of a model folder but its weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not _WEIGHT_FILE.match(path.name):
            shutil.copyfile(path, target / path.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


def describe_weights(
    folder: Path,
    num_values: Mapping[str, int],
    dtypes: Mapping[str, torch.dtype],
    *,
    cast: bool,
    corrections: Mapping[str, Any],
) -> tuple[str, ...]:
    """Makes config.json say what was written: the dtype that most values have, in every key that names one, and the
    corrections that the weights call for (``FamilyConfig``).

    A file that says so already, or that names no dtype where nothing was cast, stays as it is. Returns a line for every
    key that changed.
    """
    path = folder / "config.json"
    config = read_json(path)
    counts: dict[str, int] = {}
    for name, count in num_values.items():
        counts[dtype_name(dtypes[name])] = counts.get(dtype_name(dtypes[name]), 0) + count
    made = max(sorted(counts), key=lambda name: counts[name])
    keys = [key for key in ("torch_dtype", "dtype") if config.get(key) is not None]
    keys = keys or (["torch_dtype"] if cast else [])
    right = dict.fromkeys(keys, made) | dict(corrections)
    stale = {key: value for key, value in right.items() if config.get(key) != value}
    if stale:
        path.write_text(json.dumps(config | stale, indent=2) + "\n", encoding="utf-8")
    return tuple(
        f"config.json: {key} {json.dumps(config.get(key))} -> {json.dumps(value)}" for key, value in stale.items()
    )


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json spells it."""
    return str(dtype).removeprefix("torch.")
