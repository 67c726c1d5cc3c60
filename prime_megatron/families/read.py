"""config.json -> FamilyConfig."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families import FAMILIES, FamilyConfig


def read_config(folder: Path | str) -> FamilyConfig:
    """Reads folder/config.json. Raises InputError: no such file, not JSON, unknown architecture, missing key,
    a value that this project does not compute."""
    path = Path(folder) / "config.json"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path}: no such file; a model folder has a config.json in Hugging Face format") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    names = raw["architectures"] if isinstance(raw, dict) and "architectures" in raw else None
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in FAMILIES:
        raise InputError(f"{path}: architecture {architecture!r} is unknown; known: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[architecture]
    try:
        return family.parse({**family.defaults, **raw})
    except KeyError as error:
        raise InputError(f"{path}: key {error.args[0]!r} is missing") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
