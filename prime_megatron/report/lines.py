"""JSON lines of a run as they are: perhaps still written to, cut, or of an older version."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Lines:
    """The rows of a file, one after the other; a line that cannot be read is counted and passed over.

    Args:
        path: the file; one that is not there has no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0
        """Lines that are no row with a step, so far."""

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset in bytes, row) of every row. Raises InputError: a file that cannot be opened."""
        if not self.path.is_file():
            return
        try:
            with self.path.open("rb") as file:
                offset = 0
                for line in file:
                    row = _row(line)
                    if row is None:
                        self.unreadable += 1
                    else:
                        yield offset, row
                    offset += len(line)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    @property
    def note(self) -> str | None:
        """What a reader should know of it."""
        if not self.unreadable:
            return None
        return f"{self.path.name}: {self.unreadable} unreadable line(s) passed over; a run that was killed leaves one"


def row_at(path: Path, offset: int) -> dict[str, Any]:
    """The row that begins at this byte, where `Lines` found one."""
    with path.open("rb") as file:
        file.seek(offset)
        row = _row(file.readline())
    if row is None:
        raise InputError(f"{path}: changed while it was read; write the report again")
    return row


def number(value: object) -> float | None:
    """A metric's value as a float, the non-finite ones as they are spelled in the file; None: it is no number."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def finite(value: object) -> float | None:
    """The same where it is finite; else None."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    has_step = isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool)
    return row if has_step else None
