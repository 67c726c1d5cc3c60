"""Arithmetic on boxes: start and stop along each dimension."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from prime_megatron.parallel.shards import Region


def num_elements(box: Region) -> int:
    """Elements in a box."""
    return prod(stop - start for start, stop in box)


def intersect(a: Region, b: Region) -> Region | None:
    """The common box of two boxes, None when it is empty."""
    if a == b:
        return a
    common = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def subtract(box: Region, hole: Region) -> list[Region]:
    """The box without a box inside it, as disjoint boxes."""
    rest: list[Region] = []
    for dim, ((start, stop), (first, last)) in enumerate(zip(box, hole, strict=True)):
        head, tail = box[:dim], box[dim + 1 :]
        if start < first:
            rest.append((*head, (start, first), *tail))
        if last < stop:
            rest.append((*head, (last, stop), *tail))
        box = (*head, (first, last), *tail)
    return rest


def moved(box: Region, origin: Region, place: Region) -> Region:
    """A box inside ``origin`` as the same part of ``place``, which has the same shape."""
    if box == origin:
        return place
    return tuple(
        (start - zero + first, stop - zero + first)
        for (start, stop), (zero, _), (first, _) in zip(box, origin, place, strict=True)
    )


def extended(a: Region, b: Region, dim: int) -> Region | None:
    """a and b as one box where b follows a along ``dim`` and they agree elsewhere; else None."""
    if a[dim][1] != b[dim][0] or a[:dim] != b[:dim] or a[dim + 1 :] != b[dim + 1 :]:
        return None
    return (*a[:dim], (a[dim][0], b[dim][1]), *a[dim + 1 :])


def boxes_within(box: Region, limit: int) -> Iterator[Region]:
    """A box in boxes of at most ``limit`` (1 or more) elements, in the order of its elements: of as many whole rows as
    fit, or of parts of a row."""
    if num_elements(box) <= limit:
        yield box
        return
    (start, stop), rest = box[0], box[1:]
    row = num_elements(rest)
    step = max(1, limit // row)
    for first in range(start, stop, step):
        if step > 1 or row <= limit:
            yield ((first, min(first + step, stop)), *rest)
        else:
            yield from (((first, first + 1), *part) for part in boxes_within(rest, limit))
