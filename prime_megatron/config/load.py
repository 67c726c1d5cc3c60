"""From a YAML file and overrides to a config: defaults below the preset, preset below the file, file below the
overrides, key by key. So a file that sets one key of a section keeps that section's other defaults, such as the
PRM's own learning rate.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from prime_megatron.config.absent import settle_none, takes_text
from prime_megatron.config.curate import CurateConfig
from prime_megatron.config.explain import default_values, dotted, explain, is_section, unknown_override
from prime_megatron.config.presets import PRESETS
from prime_megatron.config.prm_run import PrmConfig, ScoreConfig
from prime_megatron.config.run import StageConfig, TrainConfig
from prime_megatron.config.sft_run import SftConfig
from prime_megatron.config.strict_yaml import KeyPath, dump, parse_file, parse_value
from prime_megatron.errors import InputError

Config = TypeVar("Config", bound=BaseModel)

MAX_ERRORS_SHOWN = 5
MAX_ERRORS_EXPLAINED = 100
_WORD = (
    'is the word none without quotes; write null or leave the key out for nothing, and "none" in quotes for the word'
)


@dataclass
class _Merged:
    """Values so far, and where each key came from ("run.yaml:12", "override 'run.steps=3'")."""

    value: dict[str, Any] = field(default_factory=dict)
    origin: dict[KeyPath, str] = field(default_factory=dict)


def load_train_config(path: str, overrides: list[str]) -> TrainConfig:
    """Read a training config.

    Args:
        path: YAML file.
        overrides: "section.key=value", the value in YAML.

    Raises:
        InputError: one line for every wrong key or value (the first few), naming the file and line or the
            override, the dotted key, and what to do.
    """
    given = _read(path, overrides, TrainConfig)
    preset = given.value.get("preset", "default")
    below = PRESETS[preset] if isinstance(preset, str) and preset in PRESETS else {}
    return _validate(given, below, path, TrainConfig)


def load_sft_config(path: str, overrides: list[str]) -> SftConfig:
    """Read a supervised fine-tuning config; arguments and errors as `load_train_config`."""
    return _validate(_read(path, overrides, SftConfig), {}, path, SftConfig)


def load_prm_config(path: str, overrides: list[str]) -> PrmConfig:
    """Read a config of the PRM alone; arguments and errors as `load_train_config`."""
    given = _read(path, overrides, PrmConfig)
    if "prm" not in given.value:
        raise InputError(f"{path}: the section prm is missing (beta, loss); write `prm: {{}}` for its defaults")
    return _validate(given, {}, path, PrmConfig)


def load_stage_config(path: str, overrides: list[str]) -> StageConfig | None:
    """Read a config of one model on rows, of either kind; None where the file is a training config.

    Such a config has `model` where a training config has `models`; the PRM's has a section `prm`, a supervised one has
    none.
    """
    keys = parse_file(path).value
    if "model" not in keys:
        return None
    return load_prm_config(path, overrides) if "prm" in keys else load_sft_config(path, overrides)


def load_score_config(overrides: list[str]) -> ScoreConfig:
    """The settings of a scoring verb, from its command line alone; errors as `load_train_config`."""
    return _validate(_lay(_Merged(), overrides, ScoreConfig), {}, "the command line", ScoreConfig)


def load_curate_config(path: str | None, overrides: list[str]) -> CurateConfig:
    """The settings of the data stages: a YAML file, or none, and overrides; errors as `load_train_config`."""
    if path is None:
        return _validate(_lay(_Merged(), overrides, CurateConfig), {}, "the command line", CurateConfig)
    return _validate(_read(path, overrides, CurateConfig), {}, path, CurateConfig)


def to_dict(config: BaseModel) -> dict[str, Any]:
    """The config as JSON-ready values, every default filled in."""
    return config.model_dump(mode="json")


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML; loading it gives an equal config."""
    return dump(to_dict(config))


def _read(path: str, overrides: list[str], model: type[BaseModel]) -> _Merged:
    document = parse_file(path)
    merged = _Merged()
    origin = {key: f"{path}:{line}" for key, line in document.lines.items()}
    _merge(merged, document.value, origin, path)
    return _lay(merged, overrides, model)


def _lay(merged: _Merged, overrides: list[str], model: type[BaseModel]) -> _Merged:
    """The overrides over what is there."""
    for text in overrides:
        key, equals, value = text.partition("=")
        name = f"override {text!r}"
        parts = tuple(key.strip().split("."))
        if not equals or not all(parts):
            raise InputError(f"{name}: not of the form section.key=value")
        if problem := unknown_override(model, parts):
            raise InputError(f"{name}: {problem}")
        nested: Any = parse_value(value, name, section=is_section(model, parts))
        textual = takes_text(model, parts)
        if textual and isinstance(nested, bool | int | float):
            nested = value  # quotes are the shell's, and gone
        elif not textual and isinstance(nested, str) and not nested.strip():
            nested = None
        for part in reversed(parts):
            nested = {part: nested}
        _merge(merged, nested, {}, name)
    unclear = [f"{merged.origin[key]}: {dotted(key)}: {_WORD}" for key in settle_none(model, merged.value)]
    if unclear:
        raise InputError("\n".join(unclear[:MAX_ERRORS_SHOWN]))
    return merged


def _merge(target: _Merged, source: dict[str, Any], origin: dict[KeyPath, str], fallback: str) -> None:
    """Lay `source` over `target`: mappings key by key, anything else replaces."""

    def lay(into: dict[str, Any], values: dict[str, Any], path: KeyPath) -> None:
        for key, value in values.items():
            here = (*path, key)
            target.origin[here] = origin.get(here, fallback)
            if isinstance(value, dict):
                if not isinstance(into.get(key), dict):
                    into[key] = {}
                lay(into[key], value, here)
            else:
                old = into.get(key)
                for index in range(len(old) if isinstance(old, list) else 0):
                    target.origin.pop((*here, index), None)
                _mark_items(value, here)
                into[key] = value

    def _mark_items(value: Any, path: KeyPath) -> None:
        for index, item in enumerate(value if isinstance(value, list) else []):
            target.origin[(*path, index)] = origin.get((*path, index), fallback)
            _mark_items(item, (*path, index))

    lay(target.value, source, ())


def _validate(given: _Merged, preset: dict[str, Any], path: str, model: type[Config]) -> Config:
    merged = _Merged()
    _merge(merged, default_values(model), {}, path)
    _merge(merged, preset, {}, path)
    _merge(merged, given.value, given.origin, path)
    try:
        return model.model_validate_json(json.dumps(merged.value))
    except ValidationError as error:
        details = error.errors(include_url=False)
    explained = details[:MAX_ERRORS_EXPLAINED]  # a search for the nearest name takes its time
    lines = sorted((explain(model, detail, merged.origin, path) for detail in explained), key=_place)
    shown = lines[:MAX_ERRORS_SHOWN]
    if len(details) > len(shown):
        shown.append(f"and {len(details) - len(shown)} more in {path}")
    raise InputError("\n".join(shown))


def _place(line: str) -> tuple[bool, int]:
    """Sorts messages: overrides first, then by line of the file, then those without a place."""
    number = re.match(r".*?:(\d+): ", line)
    return not line.startswith("override "), int(number[1]) if number else sys.maxsize
