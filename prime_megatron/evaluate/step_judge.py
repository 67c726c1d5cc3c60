"""The label-free judge of steps (uPRM, arXiv 2605.10158): any model, asked for + or - after every step.

With T steps, p+_t and p-_t the model's probabilities of the two signs behind step t, made to add up to 1, and every
earlier step marked +, the first wrong step is the j in 1 .. T + 1 (T + 1: none) of highest

    S(j) = sum over t < j of log p+_t + [j <= T] log p-_j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prime_megatron.data.messages import Message
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluate.process_bench import NO_ERROR, Solution

PLUS, MINUS = "+", "-"
QUESTION = (
    "Check this solution step by step. Behind every step stands + if the step and all before it are right, and - if "
    "the step is the first wrong one.\n\nProblem: {problem}"
)
STEP = "Step {number}: {step}\nVerdict (+ or -):\n"
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Asked:
    """A solution with a + behind every step, as the model reads it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    sign_at: tuple[int, ...]
    """Index of every sign among the response tokens."""


def sign_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Token ids of + and -. Raises InputError where one is not a single token."""
    ids = [tokenizer.encode(sign) for sign in (PLUS, MINUS)]
    for sign, found in zip((PLUS, MINUS), ids, strict=True):
        if len(found) != 1:
            raise InputError(f"{tokenizer.folder}: {sign!r} is {len(found)} tokens; the judge needs one")
    return ids[0][0], ids[1][0]


def ask(solution: Solution, tokenizer: Tokenizer, plus: int) -> Asked:
    """The chat that asks; the signs are tokens of their own. Raises InputError where the template refuses it."""
    question = Message("user", QUESTION.format(problem=solution.problem))
    _, prompt_ids = tokenizer.encode_chat((question,))
    response: list[int] = []
    signs = []
    for number, step in enumerate(solution.steps, start=1):
        before = BETWEEN if number > 1 else ""
        response += tokenizer.encode(before + STEP.format(number=number, step=step))
        signs.append(len(response))
        response.append(plus)
    return Asked(tuple(prompt_ids), tuple(response), tuple(signs))


def first_wrong(plus_logprobs: Sequence[float], minus_logprobs: Sequence[float]) -> int:
    """The index of the first wrong step, from 0, or NO_ERROR; of equally good ones the first.

    plus_logprobs, minus_logprobs: log p of the two signs behind each step, not yet made to add up to 1; [T], nats.
    """
    plus_T, minus_T = np.asarray(plus_logprobs, dtype=float), np.asarray(minus_logprobs, dtype=float)
    both_T = np.logaddexp(plus_T, minus_T)
    log_plus_T, log_minus_T = plus_T - both_T, minus_T - both_T
    before = np.concatenate([[0.0], np.cumsum(log_plus_T)])  # sum over t < j, j from 1 to T + 1
    score = before + np.concatenate([log_minus_T, [0.0]])
    best = int(np.argmax(score))
    return NO_ERROR if best == len(plus_T) else best
