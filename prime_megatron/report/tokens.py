"""The tokens that the PRM pays for most: single ones, and by what they read as."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.report.samples import Shown

NUM_LARGEST = 10
NUM_TOKENS = 20
CONTEXT = 24
"""Characters before and behind a token that are shown."""


@dataclass(frozen=True)
class Largest:
    """One token with a large reward."""

    group: int
    """Index among the groups shown."""
    response: int
    """Index among its siblings."""
    token: int
    reward: float
    before: str
    piece: str
    behind: str
    right: bool
    step: int


@dataclass(frozen=True)
class Paid:
    """All tokens that read alike."""

    piece: str
    count: int
    share: float
    """Of the sum of |reward|."""
    mean_right: float
    """Mean reward in right responses; NaN where it is in none."""
    mean_wrong: float


def largest(shown: Shown) -> tuple[list[Largest], list[Largest]]:
    """The tokens with the most and with the least reward."""
    found = [
        (reward, g, r, t)
        for g, group in enumerate(shown.groups)
        for r, response in enumerate(group.responses)
        for t, reward in enumerate(response.rewards)
        if math.isfinite(reward) and reward != 0.0
    ]
    most = [one for one in heapq.nlargest(NUM_LARGEST, found) if one[0] > 0.0]
    least = [one for one in heapq.nsmallest(NUM_LARGEST, found) if one[0] < 0.0]
    return [_placed(shown, *one) for one in most], [_placed(shown, *one) for one in least]


def _placed(shown: Shown, reward: float, g: int, r: int, t: int) -> Largest:
    group = shown.groups[g]
    response = group.responses[r]
    pieces = response.pieces
    before = "".join(pieces[max(0, t - CONTEXT) : t])[-CONTEXT:]
    behind = "".join(pieces[t + 1 : t + 1 + CONTEXT])[:CONTEXT]
    return Largest(g, r, t, reward, before, pieces[t], behind, response.right, group.step)


def paid(shown: Shown) -> list[Paid]:
    """What holds the most reward in all, by what tokens read as."""
    sums: dict[str, list[float]] = {}  # count, |reward|, then reward and count in right, in wrong responses
    for group in shown.groups:
        for response in group.responses:
            side = 2 if response.right else 4
            for piece, reward in zip(response.pieces, response.rewards):
                if math.isfinite(reward):
                    row = sums.setdefault(piece, [0.0] * 6)
                    row[0] += 1
                    row[1] += abs(reward)
                    row[side] += reward
                    row[side + 1] += 1
    whole = math.fsum(row[1] for row in sums.values())
    top = heapq.nlargest(NUM_TOKENS, sums.items(), key=lambda item: item[1][1]) if whole else []
    return [Paid(piece, int(row[0]), row[1] / whole, _mean(row[2:4]), _mean(row[4:6])) for piece, row in top]


def _mean(pair: Sequence[float]) -> float:
    total, count = pair
    return total / count if count else math.nan


def scales(shown: Shown) -> tuple[float, dict[int, float]]:
    """(size of reward that has the full colour, the same of every step): 99 of 100 tokens with a reward are below it; 0
    without rewards."""
    by_step: dict[int, list[float]] = {}
    for group in shown.groups:
        sizes = by_step.setdefault(group.step, [])
        for response in group.responses:
            sizes += [abs(reward) for reward in response.rewards if math.isfinite(reward) and reward != 0.0]
    everything = [size for sizes in by_step.values() for size in sizes]
    return _high(everything), {step: _high(sizes) for step, sizes in by_step.items()}


def _high(sizes: list[float]) -> float:
    return sorted(sizes)[min(len(sizes) - 1, len(sizes) * 99 // 100)] if sizes else 0.0
