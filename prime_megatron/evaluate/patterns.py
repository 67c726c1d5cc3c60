"""Regular expressions that a suite names."""

from __future__ import annotations

import re

MAX_CHARS = 100_000
"""Of a response, from its end, that an answer pattern sees."""


def pattern_problem(pattern: str, groups: int | None) -> str | None:
    """Why a pattern cannot be used; None: it can. ``groups``: how many it must have."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{pattern!r} is no regular expression ({error})"
    if groups is not None and compiled.groups != groups:
        return f"{pattern!r} has {compiled.groups} groups; it needs {groups}, around the answer"
    return None


def last_match(pattern: str, text: str) -> str | None:
    """The group of the pattern's last match, stripped; None: no match, or an empty one."""
    found = None
    for match in re.finditer(pattern, text[-MAX_CHARS:]):
        found = match[1]
    return (found or "").strip() or None
