"""Ground truths against themselves, before a run begins: a row whose truth does not equal itself rewards nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from prime_megatron.data.rows import PromptRow
from prime_megatron.errors import InputError, RunError
from prime_megatron.parallel.collectives import agree_on, from_rank
from prime_megatron.verify import Verifiers

MAX_COMPUTED = 2000
"""Distinct ground truths that are computed, the first of the file; each costs some ten milliseconds of one core."""
MAX_SECONDS = 60.0
"""No further one is begun after so long."""
NUM_NAMED = 5
"""Bad rows that are named."""
_IN_FLIGHT = 64

Truth = tuple[str, str]
"""Ability and ground truth."""


@dataclass(frozen=True)
class Proof:
    """problems: of truths that do not equal themselves, one line each. remark: what was computed and how long it took,
    and what was not; None where nothing had to be."""

    problems: Mapping[Truth, str]
    remark: str | None


def prove_truths(rows: Sequence[PromptRow], verifiers: Verifiers) -> Proof:
    """Compute ground truths that only computer algebra reads against themselves. Collective over the world.

    The first rank computes and all ranks get its findings: a time limit that falls differently on another rank must not
    give it other rows. Truths that are numbers, choices or words cost nothing here, and no process starts for them.

    Raises:
        InputError: the verifier cannot start.
    """
    proof: Proof | None = None

    def prove() -> None:
        nonlocal proof
        try:
            proof = _prove(rows, verifiers)
        except RunError as failure:
            raise InputError(f"ground truths cannot be checked: {failure}") from None

    agree_on(prove)
    proof = from_rank(proof)
    assert proof is not None
    return proof


def _prove(rows: Sequence[PromptRow], verifiers: Verifiers) -> Proof:
    start_s, problems, num_computed, num_left = time.monotonic(), {}, 0, 0
    flying: deque[tuple[Truth, Future[str | None]]] = deque()

    def land() -> None:
        truth, future = flying.popleft()
        problem = future.result()
        if problem is not None:
            problems[truth] = problem

    for truth in dict.fromkeys((row.ability, truth) for row in rows for truth in row.truths):
        full = num_computed >= MAX_COMPUTED or time.monotonic() - start_s > MAX_SECONDS
        future = None if full else verifiers.prove_truth(*truth)
        if full:
            num_left += 1
        elif future is not None:
            num_computed += 1
            flying.append((truth, future))
            if len(flying) >= _IN_FLIGHT:
                land()
    while flying:
        land()
    if not num_computed:
        return Proof(problems, None)
    took = f"{num_computed} ground truths computed against themselves in {time.monotonic() - start_s:.1f} s"
    left = f"; {num_left} distinct ones after them are not (at most {MAX_COMPUTED}, or {MAX_SECONDS:g} s)"
    return Proof(problems, f"data.bad_truth: {took}{left if num_left else ''}")


def problem_of(row: PromptRow, proof: Proof) -> str | None:
    """What the proof found on one of the row's truths."""
    return next(
        (proof.problems[t] for t in ((row.ability, truth) for truth in row.truths) if t in proof.problems), None
    )


def refusal_of(bad: Sequence[str]) -> str:
    """The first bad rows ("file, row 3: ground truth: ..."), how many more there are, and what to do, in one line."""
    more = f"; and {len(bad) - NUM_NAMED} more rows" if len(bad) > NUM_NAMED else ""
    return f"{'; '.join(bad[:NUM_NAMED])}{more} (data.bad_truth=skip leaves such rows out)"
