"""From outcomes of tests to a sample's score."""

from collections.abc import Callable

FRACTION, ALL, ORIGINAL = "fraction", "all", "original"
SCORES = (FRACTION, ALL, ORIGINAL)
NUM_ORIGINAL = 10
"""PRIME's code scores by its first ten tests where not all pass."""


def run_as_needed(num_tests: int, score: str, passes: Callable[[int], bool]) -> list[bool]:
    """Outcomes of the tests in order, as far as they can change the score; the rest is left out.

    fraction: every test counts. all: the first failure decides. original: after a failure only the first ten count.
    """
    outcomes: list[bool] = []
    for index in range(num_tests):
        failed = not all(outcomes)
        if failed and (score == ALL or (score == ORIGINAL and index >= NUM_ORIGINAL)):
            break
        outcomes.append(passes(index))
    return outcomes


def score_of(outcomes: list[bool], num_tests: int, score: str) -> float:
    """fraction: passes / tests (the paper's). all: 1 if all pass, else 0. original: 1 if all, else of the first ten."""
    if all(outcomes) and len(outcomes) == num_tests:
        return 1.0
    if score == ALL:
        return 0.0
    counted = outcomes[:NUM_ORIGINAL] if score == ORIGINAL else outcomes
    return sum(counted) / (min(NUM_ORIGINAL, num_tests) if score == ORIGINAL else num_tests)
