"""Sizes of memory as text: a number and its unit."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    "TiB": 2**40,
}  # fmt: skip
EXPECTED = "a size with its unit, such as 80GiB, 79.6GiB or 80GB"
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes of 80GiB (80 x 2^30), 80GB (80 x 10^9) and the like, units spelled exactly; None: not a size above 0."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in UNITS:
        return None
    return int(float(match[1]) * UNITS[match[2]]) or None


def checked_size(text: str) -> str:
    """The text where it is a size; for pydantic, which raises its ValidationError where it is not."""
    if parse_size(text) is None:
        raise PydanticCustomError("size", EXPECTED)
    return text
