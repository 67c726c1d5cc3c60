"""Splitting weights into parts of nearly equal sum. Pure Python, deterministic."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

DIFFERENCING_LIMIT = 2**18
"""Items x parts up to which largest differencing is tried beside the greedy split (about 0.1 s there)."""
SWAP_LIMIT = 2048
"""Items up to which the split is refined by swaps."""

GOOD_ENOUGH = 1.001
"""Heaviest part over the mean at which the search ends: the rest is lost in other noise."""

Parts = list[list[int]]


def balanced_parts(weights: Sequence[int], num_parts: int) -> Parts:
    """Split items into `num_parts` lists of indices so that the heaviest part is as light as we can make it.

    The better of the greedy split and, where it is cheap, largest differencing, refined by swaps. Weights are
    tokens: attention's quadratic part is not counted (it is under a tenth of a 7B layer's work below about 4,000
    tokens).

    Returns:
        `num_parts` lists (some empty when there are fewer items), each ascending, heaviest part first.
    """
    goal = GOOD_ENOUGH * sum(weights) / num_parts
    best = greedy_parts(weights, num_parts)
    if num_parts < len(weights) and max(_loads(weights, best)) > goal:
        if len(weights) * num_parts <= DIFFERENCING_LIMIT:
            other = differencing_parts(weights, num_parts)
            best = min(best, other, key=lambda parts: max(_loads(weights, parts)))
        if len(weights) <= SWAP_LIMIT:
            best = swapped_parts(weights, best, goal)
    loads = _loads(weights, best)
    order = sorted(range(num_parts), key=lambda part: (-loads[part], best[part]))
    return [sorted(best[part]) for part in order]


def greedy_parts(weights: Sequence[int], num_parts: int) -> Parts:
    """Heaviest item first, each to the part that is lightest so far (Graham's LPT)."""
    parts: Parts = [[] for _ in range(num_parts)]
    heap = [(0, 0, part) for part in range(num_parts)]
    for item in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        load, count, part = heapq.heappop(heap)
        parts[part].append(item)
        heapq.heappush(heap, (load + weights[item], count + 1, part))
    return parts


def differencing_parts(weights: Sequence[int], num_parts: int) -> Parts:
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


def swapped_parts(weights: Sequence[int], parts: Parts, goal: float) -> Parts:
    """Relieve the heaviest part by its best single swap with another part until it is at `goal` or no swap helps.

    Every swap makes both parts lighter than the heaviest was, so it ends; at most one swap per item is made.
    """
    parts = [list(part) for part in parts]
    loads = _loads(weights, parts)
    for _ in range(len(weights)):
        heavy = max(range(len(parts)), key=lambda part: (loads[part], -part))
        found = _best_swap(weights, parts, loads, heavy) if loads[heavy] > goal else None
        if found is None:
            return parts
        mine, other, theirs = found
        moved = weights[parts[heavy][mine]] - weights[parts[other][theirs]]
        parts[heavy][mine], parts[other][theirs] = parts[other][theirs], parts[heavy][mine]
        loads[heavy] -= moved
        loads[other] += moved
    return parts


def _best_swap(weights: Sequence[int], parts: Parts, loads: list[int], heavy: int) -> tuple[int, int, int] | None:
    """(position in the heavy part, other part, position there) of the swap that leaves the lower heavier part."""
    best, lowest = None, loads[heavy]
    for other, part in enumerate(parts):
        gap = loads[heavy] - loads[other]
        for mine, item in enumerate(parts[heavy]):
            for theirs, candidate in enumerate(part):
                moved = weights[item] - weights[candidate]
                after = loads[heavy] - min(moved, gap - moved)
                if after < lowest:
                    best, lowest = (mine, other, theirs), after
    return best


def _loads(weights: Sequence[int], parts: Parts) -> list[int]:
    return [sum(weights[item] for item in part) for part in parts]
