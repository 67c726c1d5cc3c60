"""Paths as a user writes them: ~ and variables stand for what they do in a shell."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\})")


def user_path(text: str) -> str:
    """The path that the text means on this machine.

    Raises:
        ValueError: it is empty, or names a variable that is not set or a user without a home.
    """
    if not text.strip() or "\0" in text:
        raise ValueError("a path")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or ""
        if name not in os.environ:
            raise ValueError(f"a path whose variables are set, and ${name} is not")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if text.startswith("~") and path.startswith("~"):
        raise ValueError(f"a path, and {text.partition('/')[0]} has no home folder (./~ names a file of that name)")
    return path


UserPath = Annotated[str, AfterValidator(user_path)]
"""Type of a key that names a file or a folder."""
