"""What rows are held against: sets of evaluation suites, and files of other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prime_megatron.curate.columns import first_column
from prime_megatron.curate.forms_math import QUESTIONS, without_instruction
from prime_megatron.curate.held_out import HeldOut
from prime_megatron.curate.tables import rows_of
from prime_megatron.data.messages import read_messages
from prime_megatron.errors import InputError
from prime_megatron.evaluate.sets import read_sets
from prime_megatron.evaluate.suite import load_suite

_RAW: dict[str, Any] = {"prompt": "{question}", "system": None, "system_file": None}
"""A suite's sets without their wording: only the problems are compared."""
_COLUMNS = (*QUESTIONS, "description", "problem-description", "content")


def suite_problems(suite: str, data: str | None, sets: Sequence[str]) -> Iterator[HeldOut]:
    """The problems of a suite's sets. Raises InputError as the suite's own readers."""
    for name, items in read_sets(load_suite(suite, data, "fixed", _RAW, tuple(sets))).items():
        for item in items:
            prompt = item.question.prompt
            text = prompt if isinstance(prompt, str) else prompt[-1].content
            yield HeldOut(f"{name}/{item.question.id}", without_instruction(text))


def file_problems(files: Sequence[str]) -> Iterator[HeldOut]:
    """The problems of rows: text, or a chat's last user message. Raises InputError: a row without one."""
    for origin, row in rows_of(files):
        column = first_column(row, _COLUMNS, "the problem", origin)
        value = row[column]
        if isinstance(value, list):
            said = [message.content for message in read_messages(value, column, origin) if message.role == "user"]
            value = without_instruction(said[-1]) if said else ""
        if not isinstance(value, str):
            raise InputError(f"{origin}: {column} must be text or a chat")
        file, _, number = origin.rpartition(", row ")
        yield HeldOut(f"{Path(file).name}/{row.get('id', number)}", value)


def digest_of(problems: Sequence[HeldOut]) -> str:
    """sha256 of what is held out."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.name}\0{problem.text}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
