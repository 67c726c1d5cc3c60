"""The row that every stage reads and writes: the schema of Eurus-2-RL-Data, and the problem's text alone beside it.

id              unique: the source's name and the row's place in it
data_source     where the problem comes from
ability         which verifier scores its answers
problem         the text alone, without instructions
prompt          chat messages: what a model is asked
reward_model    {"style": "rule", "ground_truth": ...}; null where there is no truth
solution        reference solution or program; null where there is none
extra_info      what else the source says
difficulty      share of attempts that were wrong, 0 to 1 (stage `attempts`); null before
solvable        false: known to have no solution, planted to measure the judges; null: not known
curation        what stages decided about the row
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.config.curate import WordingConfig
from prime_megatron.data.messages import Message, kind_of, read_messages
from prime_megatron.errors import InputError

DROPPED = "dropped"
"""Column of a row that a stage left out: which stage, by which rule, why."""


@dataclass(frozen=True)
class CuratedRow:
    """A row; see the module."""

    id: str
    problem: str
    prompt: tuple[Message, ...]
    ability: str
    data_source: str
    ground_truth: str | None = None
    solution: str | None = None
    extra_info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    difficulty: float | None = None
    solvable: bool | None = None
    curation: Mapping[str, Any] = field(default_factory=dict, hash=False)


def to_json(row: CuratedRow) -> dict[str, Any]:
    """The row's columns, in the module's order."""
    truth = None if row.ground_truth is None else {"style": "rule", "ground_truth": row.ground_truth}
    return {
        "id": row.id,
        "data_source": row.data_source,
        "ability": row.ability,
        "problem": row.problem,
        "prompt": [message.for_template() for message in row.prompt],
        "reward_model": truth,
        "solution": row.solution,
        "extra_info": dict(row.extra_info),
        "difficulty": row.difficulty,
        "solvable": row.solvable,
        "curation": dict(row.curation),
    }


def read_row(row: Mapping[str, Any], origin: str) -> CuratedRow:
    """A row of an earlier stage. Raises InputError that names ``origin`` and the column."""
    prompt = _value(row, "prompt", list, origin)
    reward = _optional(row, "reward_model", dict, origin)
    difficulty = _optional(row, "difficulty", float, origin)
    if difficulty is not None and not 0 <= difficulty <= 1:
        raise InputError(f"{origin}: difficulty must lie between 0 and 1, got {difficulty!r}")
    return CuratedRow(
        id=_value(row, "id", str, origin),
        problem=_value(row, "problem", str, origin),
        prompt=read_messages(prompt, "prompt", origin),
        ability=_value(row, "ability", str, origin),
        data_source=_value(row, "data_source", str, origin),
        ground_truth=None if reward is None else _value(reward, "ground_truth", str, f"{origin}: reward_model"),
        solution=_optional(row, "solution", str, origin),
        extra_info=_without_nothing(_optional(row, "extra_info", dict, origin) or {}),
        difficulty=difficulty,
        solvable=_optional(row, "solvable", bool, origin),
        curation=_without_nothing(_optional(row, "curation", dict, origin) or {}),
    )


def ask(problem: str, ability: str, wording: WordingConfig) -> tuple[Message, ...]:
    """The chat that asks a problem."""
    texts = {"math": wording.math, "code": wording.code}
    user = Message("user", texts.get(ability, wording.exact).replace("{problem}", problem))
    return (user,) if wording.system is None else (Message("system", wording.system), user)


def format_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line; the same row gives the same bytes."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    try:
        line = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8
        return json.dumps(row, allow_nan=False, default=str).encode() + b"\n"
    return line + b"\n"


def _value(row: Mapping[str, Any], key: str, kind: type, origin: str) -> Any:
    value = _optional(row, key, kind, origin)
    if value is None or value == "":
        raise InputError(
            f"{origin}: {key} is missing or empty; stages read what `curate read` writes, this row has "
            f"{', '.join(row) or 'no columns'}"
        )
    return value


def _optional(row: Mapping[str, Any], key: str, kind: type, origin: str) -> Any:
    value = row.get(key)
    if value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind):
        raise InputError(f"{origin}: {key} must be {_NAMES[kind]}, got {kind_of(value)}")
    return value


_NAMES = {str: "text", list: "a list of chat messages", dict: "an object", float: "a number", bool: "true or false"}


def _without_nothing(value: Mapping[str, Any]) -> dict[str, Any]:
    """Parquet fills every object with the keys of all."""
    return {key: item for key, item in value.items() if item is not None}
