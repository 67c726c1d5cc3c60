"""JSON that others wrote: bounded depth, digits and size, text that has a UTF-8 form; a fault is a `ValueError`.

Python's own reader ends in a RecursionError within deep nests, in a ValueError of its own at integers of more than
4,300 digits (a float ends at 309), and gives half of a surrogate pair as text that nothing can write again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError

MAX_DEPTH = 64
"""Lists and objects within each other."""
MAX_DIGITS = 300
"""Of an integer: as many as the largest float has."""
MAX_FILE_BYTES = 128 * 2**20
"""Of a file that is read whole: the index of a large model's weights has some 20 MB."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes, *, finite: bool = False, halves: bool = False) -> Any:
    """The value of a JSON text, in UTF-8 where it is bytes. NaN and Infinity, which JSON lacks, pass as Python's reader
    takes them, unless only ``finite`` numbers are wanted; ``halves`` of surrogate pairs pass where they are.

    Raises:
        ValueError: not JSON, not UTF-8, or beyond the bounds; one line, with the column where there is one.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
    # Cheap, and certain: without so many brackets there is no such depth.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text)
    try:
        value = json.loads(text, parse_int=_whole, parse_constant=_refuse if finite else None)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{error.msg}, {line}column {error.colno}") from None
    if not halves and _SURROGATE.search(text):
        _check_text(value)
    return value


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A regular file whole. Raises OSError: it cannot be read, or is a pipe or a device; ValueError: it is larger."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise ValueError(f"{status.st_size} bytes are more than the {max_bytes} that are read")
        return file.read(max_bytes)


def _without_waiting(path: str, flags: int) -> int:
    """A pipe that nobody writes to is opened at once, and then refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """The object in a JSON file of at most so many bytes.

    Raises:
        InputError: one line that names the file: it is missing, not a file, too large, not JSON, no object.
    """
    try:
        value = parse_json(read_bytes(path, max_bytes))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += 1 if token in "[{" else -1 if token in "]}" else 0
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _check_text(value: Any) -> None:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            raise ValueError("text with half of a surrogate pair, which has no UTF-8 form")
