"""A question of a set, with what its grader needs and what its authors answer."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.generate.questions import Question


@dataclass(frozen=True)
class Item:
    """One row of a set."""

    question: Question
    before: str = ""
    """Python that stands before a response's program: what the question gave it."""
    after: str = ""
    """Python that stands behind it."""
    entry_point: str = ""
    """Function that a program must define; where it does not, it goes on with `start`."""
    start: str = ""
    """The beginning of a program that a response may only continue."""
    canonical: str | None = None
    """A response that is right, made of the row's own solution; None: the row has none."""


@dataclass(frozen=True)
class Problem:
    """A programming problem as a published form gives it."""

    id: str
    question: str
    truth: str
    """Tests, see ``verify.code.jail.truth``."""
    before: str = ""
    after: str = ""
    entry_point: str = ""
    start: str = ""
    solution: str | None = None
    """A whole program."""


def fenced(program: str) -> str:
    """A program as a response shows it."""
    return f"```python\n{program.rstrip()}\n```\n"
