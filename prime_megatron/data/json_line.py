"""A line of a JSONL file as a row: bounded length, depth and digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json

MAX_ROW_BYTES = 64 * 2**20
"""Of a line: programs' tests take some megabytes."""


def lines_of(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank, a byte-order mark before the first left out.

    Raises:
        InputError: a line of more than MAX_ROW_BYTES; it is not read further.
    """
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise InputError(f"{name}, row {number}: more than {MAX_ROW_BYTES} bytes in one line; is it JSONL?")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def parse_line(line: bytes, where: str, *, finite: bool = False, halves: bool = False) -> Any:
    """The value of a line; flags as `parse_json`. Raises InputError: it is not JSON; ``where``: "file, row n"."""
    try:
        return parse_json(line, finite=finite, halves=halves)
    except ValueError as error:
        reason = str(error)
        raise InputError(f"{where}: {reason if reason.startswith('not ') else f'not JSON ({reason})'}") from None
