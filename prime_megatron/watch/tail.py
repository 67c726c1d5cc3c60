"""The end of a JSON-lines file that another process may be writing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prime_megatron.strict_json import parse_json

_WORDS = ("NaN", "Infinity", "-Infinity")
"""Numbers that JSON lacks, as `metrics.jsonl` writes them."""
MAX_SECONDS = 1e11
"""Beyond every date."""


def last_rows(path: Path, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The objects in the last bytes of a file, the newest first; a line that is cut off or damaged is left out. Nothing
    where there is no regular file.

    Raises:
        OSError: the file is there and cannot be read.
    """
    for line in reversed(_last_lines(path, max_bytes)):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def number(value: Any) -> float | None:
    """A metric as a number, not-a-number and the infinities included; None: it is none."""
    if isinstance(value, str):
        return float(value) if value in _WORDS else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def seconds(value: Any) -> float | None:
    """A metric as a time that a run can have taken, or a date since 1970; None: it is none."""
    found = number(value)
    return found if found is not None and 0.0 <= found < MAX_SECONDS else None


def _last_lines(path: Path, max_bytes: int) -> list[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    except (FileNotFoundError, NotADirectoryError):
        return []
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return []
        start = max(0, status.st_size - max_bytes)
        file.seek(start)
        lines = file.read(max_bytes).split(b"\n")
    # What follows the last line end is not written to its end yet; what precedes the first may have lost its beginning.
    return lines[start > 0 : -1]
