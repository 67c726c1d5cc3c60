"""True, False and None for "not certain", as comparisons of parts give them."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Leaf = Callable[[str, str], bool | None]
"""Whether two expressions in LaTeX (of the ground truth, of the answer) have the same value."""
Item = TypeVar("Item")
MAX_ITEMS = 24
"""More than these are not paired off: each pair may cost a computation."""


def every(values: Iterable[bool | None]) -> bool | None:
    """False where one is False, else None where one is None, else True; stops at the first False."""
    certain = True
    for value in values:
        if value is False:
            return False
        certain = certain and value is True
    return True if certain else None


def pair_off(gold: Sequence[Item], given: Sequence[Item], equal: Callable[[Item, Item], bool | None]) -> bool | None:
    """Whether each of one side has its own equal on the other, in any order. At most n^2 comparisons."""
    if len(gold) != len(given):
        return False
    if len(gold) > MAX_ITEMS:
        return None
    left = list(given)
    certain = True
    for item in gold:
        results = []
        for index, other in enumerate(left):
            result = equal(item, other)
            results.append(result)
            if result:
                del left[index]
                break
        else:
            if None not in results:
                return False
            certain = False
    return True if certain else None
