"""Boxes against sets of cells."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.weights.boxes import boxes_within, extended, intersect, moved, num_elements, subtract

EDGES = st.tuples(st.integers(0, 5), st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
BOXES = st.tuples(EDGES, EDGES)


def cells(box) -> set[tuple[int, ...]]:
    return set(product(*(range(start, stop) for start, stop in box)))


@settings(deadline=None)
@given(a=BOXES, b=BOXES)
def test_common_part_and_the_rest(a, b) -> None:
    common = intersect(a, b)
    assert (cells(common) if common else set()) == cells(a) & cells(b)
    if common:
        rest = subtract(a, common)
        assert sum(num_elements(box) for box in rest) == len(cells(a) - cells(b)), "the boxes overlap"
        assert set().union(*map(cells, rest)) == cells(a) - cells(b)


@settings(deadline=None)
@given(a=BOXES, b=BOXES, dim=st.integers(0, 1))
def test_extended(a, b, dim) -> None:
    both = extended(a, b, dim)
    if both is not None:
        assert cells(both) == cells(a) | cells(b)
        assert num_elements(both) == num_elements(a) + num_elements(b)
    assert extended(a, (*a[:dim], (a[dim][1], a[dim][1] + 2), *a[dim + 1 :]), dim) is not None


def test_moved() -> None:
    assert moved(((3, 5), (1, 2)), ((2, 6), (1, 4)), ((10, 14), (0, 3))) == ((11, 13), (0, 1))


@settings(deadline=None)
@given(box=st.lists(EDGES, min_size=1, max_size=3).map(tuple), limit=st.integers(1, 70))
def test_a_box_within_a_limit(box, limit) -> None:
    parts = list(boxes_within(box, limit))
    assert all(0 < num_elements(part) <= limit for part in parts)
    in_order = [cell for part in parts for cell in product(*(range(start, stop) for start, stop in part))]
    assert in_order == list(product(*(range(start, stop) for start, stop in box)))
    if num_elements(box) <= limit:
        assert parts == [box]
