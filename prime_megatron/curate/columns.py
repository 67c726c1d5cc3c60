"""Columns of published rows, checked: a value of another kind is an error by file and row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prime_megatron.data.messages import kind_of
from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json


def has_column(row: Mapping[str, Any], name: str, origin: str) -> None:
    """Raises InputError for a row without the column; that its value is null is for the caller."""
    if name not in row:
        raise InputError(f"{origin}: no column {name}; the row has {', '.join(row) or 'no columns'}")


def text_of(row: Mapping[str, Any], name: str, origin: str) -> str:
    """A column of text, stripped; "" where it is null. Raises InputError: no such column, or another kind."""
    has_column(row, name, origin)
    return optional_text(row, name, origin)


def optional_text(row: Mapping[str, Any], name: str, origin: str) -> str:
    """The same of a column that a row may lack."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{origin}: {name} must be text, got {kind_of(value)}")
    return value.strip()


def answer_of(row: Mapping[str, Any], name: str, origin: str) -> str:
    """A column with an answer: text, a number, or a list of one; "" where there is none."""
    has_column(row, name, origin)
    value = row[name]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == []:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{origin}: {name} must be text, a number or a list of one, got {kind_of(value)}")
    if isinstance(value, float):
        return "" if not math.isfinite(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def first_column(row: Mapping[str, Any], names: Sequence[str], what: str, origin: str) -> str:
    """The first of the columns that the row has. Raises InputError: it has none of them."""
    for name in names:
        if name in row:
            return name
    raise InputError(f"{origin}: no column with {what} ({', '.join(names)}); the row has {', '.join(row) or 'nothing'}")


def flag_of(row: Mapping[str, Any], name: str, origin: str) -> bool | None:
    """A column of true or false that a row may lack."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{origin}: {name} must be true or false, got {kind_of(value)}")
    return value


def json_of(row: Mapping[str, Any], name: str, kind: type, origin: str) -> Any:
    """A column of JSON, as text or as a value; None where it is null or empty text. Raises InputError."""
    has_column(row, name, origin)
    value = row[name]
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = parse_json(value)
        except ValueError as error:
            raise InputError(f"{origin}: {name} is not JSON ({error})") from None
    if value is not None and not isinstance(value, kind):
        raise InputError(
            f"{origin}: {name} must hold {'a list' if kind is list else 'an object'}, got {kind_of(value)}"
        )
    return value


def listed(value: Any, keys: Sequence[str], name: str, origin: str) -> list[dict[str, Any]]:
    """Objects with these keys, given as a list of them or as an object of lists; [] for nothing. Raises InputError."""
    if value is None:
        return []
    if isinstance(value, dict):
        columns = [column for key in keys if isinstance(column := value.get(key), list)]
        if len(columns) == len(keys) and len({len(column) for column in columns}) == 1:
            return [dict(zip(keys, items, strict=True)) for items in zip(*columns, strict=True)]
    elif isinstance(value, list) and all(isinstance(one, dict) and set(keys) <= one.keys() for one in value):
        return value
    raise InputError(f"{origin}: {name} must hold {' and '.join(keys)}, as lists of one length or as objects")


def kept_columns(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What goes on into extra_info: these columns, where they are plain values."""
    return {name: row[name] for name in names if isinstance(row.get(name), (str, int, float, bool)) and row[name] != ""}
