"""Splitting weights into parts of nearly equal sum. Pure Python, deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

DIFFERENCING_LIMIT = 2**15
"""Items x parts up to which Karmarkar-Karp is tried beside the greedy split (about 0.1 s)."""


def balanced_parts(weights: Sequence[int], num_parts: int) -> list[list[int]]:
    """Split items into `num_parts` lists of indices so that the heaviest part is as light as we can make it.

    The better of the greedy split and, where it is cheap, largest differencing. Weights are tokens: attention's
    quadratic part is not counted (it is under a tenth of a 7B layer's work below about 4,000 tokens).

    Returns:
        `num_parts` lists (some empty when there are fewer items), each ascending, heaviest part first.
    """
    candidates = [greedy_parts(weights, num_parts)]
    if 1 < num_parts < len(weights) and len(weights) * num_parts <= DIFFERENCING_LIMIT:
        candidates.append(differencing_parts(weights, num_parts))
    best = min(candidates, key=lambda parts: max(_loads(weights, parts), default=0))
    loads = _loads(weights, best)
    order = sorted(range(num_parts), key=lambda part: (-loads[part], best[part]))
    return [sorted(best[part]) for part in order]


def greedy_parts(weights: Sequence[int], num_parts: int) -> list[list[int]]:
    """Heaviest item first, each to the part that is lightest so far (Graham's LPT)."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0, 0, part) for part in range(num_parts)]
    for item in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        load, count, part = heapq.heappop(heap)
        parts[part].append(item)
        heapq.heappush(heap, (load + weights[item], count + 1, part))
    return parts


def differencing_parts(weights: Sequence[int], num_parts: int) -> list[list[int]]:
    """Largest differencing (Karmarkar and Karp 1982) for any number of parts.

    Each item starts as a split of its own; the two splits of widest spread are merged, heavy parts on light ones,
    until one is left.
    """
    empty: tuple[int, list[int]] = (0, [])
    heap = []
    for item, weight in enumerate(weights):
        split = [(weight, [item])] + [empty] * (num_parts - 1)
        heap.append((-weight, item, split))
    heapq.heapify(heap)
    serial = len(weights)
    while len(heap) > 1:
        _, _, one = heapq.heappop(heap)
        _, _, two = heapq.heappop(heap)
        merged = [(a + b, x + y) for (a, x), (b, y) in zip(one, reversed(two), strict=True)]
        merged.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], serial, merged))
        serial += 1
    return [items for _, items in heap[0][2]]


def _loads(weights: Sequence[int], parts: list[list[int]]) -> list[int]:
    return [sum(weights[item] for item in part) for part in parts]
