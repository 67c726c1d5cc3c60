"""What was right in a response to a quiz, line by line, from its tokens; the ground truth is the quiz filled in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOKENS_A_LINE = 3
"""Star or dash, square, digit; the digit is the line's answer."""


def right_lines(token_ids: Sequence[int], truth_ids: Sequence[int]) -> np.ndarray:
    """Which lines of a response are as they should be: bool [lines]; a line that is missing is not.

    truth_ids: of the filled-in quiz, without an end of turn.
    """
    lines = len(truth_ids) // TOKENS_A_LINE
    given = np.full(lines * TOKENS_A_LINE, -1)
    kept = list(token_ids[: given.size])
    given[: len(kept)] = kept
    return (given == np.asarray(truth_ids)).reshape(lines, TOKENS_A_LINE).all(axis=1)


def centred(right_KL: np.ndarray) -> np.ndarray:
    """The truth of each line of K siblings: right (1 or 0) less the siblings' mean at that line: [K, lines]."""
    return right_KL - right_KL.mean(axis=0, keepdims=True)


def at_answers(values: Sequence[float], lines: int) -> np.ndarray:
    """The values at the answers' digits: [lines], nan where the response has no such token."""
    found = np.full(lines, np.nan)
    answers = np.asarray(values, dtype=float)[TOKENS_A_LINE - 1 :: TOKENS_A_LINE][:lines]
    found[: answers.size] = answers
    return found
