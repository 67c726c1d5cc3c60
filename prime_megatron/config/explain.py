"""A validation error as one line: where, which key, what was expected, what to do."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel

from prime_megatron.config.strict_yaml import KeyPath

_YAML_1_1_BOOLS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_FORMER_BOOLS: dict[KeyPath, tuple[str, str]] = {("parallel", "offload"): ("none", "generation")}
"""Keys that were booleans: what false and true are called now."""
_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
}


def explain(model: type[BaseModel], detail: Any, origin: dict[KeyPath, str], path: str) -> str:
    """One line for one of pydantic's error details.

    Args:
        model: the config's class.
        detail: an item of `ValidationError.errors()`.
        origin: where each key came from, "file:line" or "override '...'".
        path: the config file, for keys that came from nowhere.
    """
    location: KeyPath = tuple(detail["loc"])
    where = next((origin[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origin), path)
    key = dotted(location)
    if detail["type"] == "extra_forbidden":
        return f"{where}: {_unknown(model, location)}"
    if detail["type"] == "missing" and isinstance(location[-1], int):
        return f"{where}: {dotted(location[:-1])}: expected more values, got {location[-1]}"
    if detail["type"] == "missing":
        return f"{where}: {key} is missing; add it (it has no default)"
    return f"{where}: {key}: expected {_expected(model, detail, location)}, got {_shown(detail)}"


def unknown_override(model: type[BaseModel], parts: tuple[str, ...]) -> str | None:
    """What is wrong with an override's key, or None when the config has it."""
    section: type[BaseModel] | None = model
    named_by_user = False
    for depth, part in enumerate(parts):
        if section is None and named_by_user and depth == len(parts) - 1:
            return None
        if section is None:
            return f"unknown key {'.'.join(parts)}: {'.'.join(parts[:depth])} is a value, not a section"
        if part not in section.model_fields:
            return _unknown(model, parts[: depth + 1])
        annotation = section.model_fields[part].annotation
        section, named_by_user = section_of(annotation), typing.get_origin(annotation) is dict
    return None


def is_section(model: type[BaseModel], parts: tuple[str, ...]) -> bool:
    """Whether a key of the config holds keys."""
    return _walk(model, parts) is not None


def default_values(model: type[BaseModel]) -> dict[str, Any]:
    """Every default below `model` as JSON-ready values; keys without a default are left out."""
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        section = section_of(info.annotation)
        if isinstance(info.default, BaseModel):
            values[name] = info.default.model_dump(mode="json")
        elif section is not None and info.is_required():
            values[name] = default_values(section)
    return values


def _unknown(model: type[BaseModel], location: KeyPath) -> str:
    """ "unknown key a.b; did you mean a.c?" or, failing that, the keys there are."""
    section = _walk(model, location[:-1])
    names = list(section.model_fields) if section else []
    name = str(location[-1])
    key = dotted(location)
    if close := difflib.get_close_matches(name, names, n=1):
        return f"unknown key {key}; did you mean {dotted((*location[:-1], close[0]))}?"
    everywhere = list(_leaves(model))
    if elsewhere := [path for path in everywhere if path.rpartition(".")[2] == name]:
        return f"unknown key {key}; did you mean {' or '.join(elsewhere[:3])}?"
    if close := difflib.get_close_matches(name, [path.rpartition(".")[2] for path in everywhere], n=1):
        first = next(path for path in everywhere if path.rpartition(".")[2] == close[0])
        return f"unknown key {key}; did you mean {first}?"
    return f"unknown key {key}; the keys here are {', '.join(names)}; remove it or correct its name"


def _expected(model: type[BaseModel], detail: Any, location: KeyPath) -> str:
    kind = detail["type"]
    value = detail["input"]
    if kind == "enum" and location in _FORMER_BOOLS and isinstance(value, bool):
        return f"one of {', '.join(_choices(_annotation(model, location)))} (write {_FORMER_BOOLS[location][value]})"
    if kind in ("enum", "literal_error"):
        choices = _choices(_annotation(model, location))
        close = difflib.get_close_matches(str(value), choices, n=1) if isinstance(value, str) else []
        return f"one of {', '.join(choices)}" + (f" (did you mean {close[0]}?)" if close else "")
    if kind in ("bool_type", "bool_parsing") and str(value).lower() in _YAML_1_1_BOOLS:
        return f"true or false (write {_YAML_1_1_BOOLS[str(value).lower()]})"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"text (write {json.dumps(json.dumps(value))})"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"a whole number (write {int(value)})"
    if kind in ("tuple_type", "list_type"):
        return "a list" + _list_of_one(value, texts="str" in str(_annotation(model, location)))
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if kind in ("too_short", "too_long"):
        return re.sub(r"\w+ should have (at \w+ \d+) item.*", r"\1 values", detail["msg"])
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value should ")
    return "a value " + message if message.startswith(("greater", "less")) else message


def _list_of_one(value: Any, *, texts: bool) -> str:
    """The spelling of a value as a list (of ``texts`` or of numbers), where there is one."""
    if value is None or isinstance(value, bool | dict | list) or str(value).lower() == "none":
        return ""
    if texts is not isinstance(value, str):
        return f' (write ["{value}"])' if texts else ""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z~/][\w./-]*", value)
    return f" (write [{value if plain else json.dumps(value, ensure_ascii=False)}])"


def _shown(detail: Any) -> str:
    value = detail["input"]
    kind = {bool: "", int: "", float: "", str: "text ", type(None): ""}
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing (null)"
    text = json.dumps(value, ensure_ascii=False)
    return kind[type(value)] + (text if len(text) <= 80 else text[:77] + "...")


def dotted(location: KeyPath) -> str:
    """A key's name, list items by their number."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation, if it has one."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _walk(model: type[BaseModel], location: KeyPath) -> type[BaseModel] | None:
    section: type[BaseModel] | None = model
    for part in location:
        if section is None or part not in section.model_fields:
            return None
        section = section_of(section.model_fields[str(part)].annotation)
    return section


def _annotation(model: type[BaseModel], location: KeyPath) -> Any:
    names = [part for part in location if isinstance(part, str)]
    section = _walk(model, tuple(names[:-1]))
    assert section is not None
    return section.model_fields[names[-1]].annotation


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [member.value for member in annotation]
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every key of the config."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if section := section_of(info.annotation):
            yield from _leaves(section, f"{prefix}{name}.")
