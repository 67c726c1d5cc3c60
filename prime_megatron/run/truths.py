"""Ground truths against themselves, before a run begins: a row whose truth does not equal itself rewards nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from prime_megatron.data.rows import PromptRow
from prime_megatron.errors import InputError
from prime_megatron.parallel.collectives import from_rank
from prime_megatron.verify import Verifiers

MAX_COMPUTED = 2000
"""Distinct ground truths that are computed, the first of the file; each costs some ten milliseconds of one core."""
MAX_SECONDS = 60.0
"""No further one is begun after so long."""
NUM_NAMED = 5
_IN_FLIGHT = 64

Truth = tuple[str, str]
"""Ability and ground truth."""


@dataclass(frozen=True)
class Proof:
    """problems: of truths that are not equal to themselves, one line each. remark: what was computed and what was not,
    "" where nothing had to be."""

    problems: dict[Truth, str]
    remark: str


def prove_truths(rows: Sequence[PromptRow], verifiers: Verifiers) -> Proof:
    """Compute ground truths that only computer algebra reads against themselves. Collective over the world.

    The first rank computes and all ranks get its findings: a time limit that falls differently on another rank must not
    give it other rows. Truths that are numbers, choices or words cost nothing here, and no process starts for them.

    Raises:
        InputError: a verifier cannot start.
    """
    found: tuple[Proof | None, str] = (None, "")
    if from_rank(True):
        try:
            found = (_prove(rows, verifiers), "") if _is_first() else (None, "")
        except Exception as failure:
            found = (None, f"ground truths: {failure}")
    proof, failure = from_rank(found)
    if proof is None:
        raise InputError(failure)
    return proof


def named(bad: Sequence[str]) -> str:
    """The first rows that are bad, in one line, and how many more there are."""
    more = f"; and {len(bad) - NUM_NAMED} more rows" if len(bad) > NUM_NAMED else ""
    return "; ".join(bad[:NUM_NAMED]) + more
