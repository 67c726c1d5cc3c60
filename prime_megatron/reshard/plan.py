"""Which slice of which training shard goes where in the engine; pure arithmetic on boxes, made once.

Both sides speak of pieces of Hugging Face tensors (``parallel.shards.ShardSlice``): a training rank holds pieces in
its parameters, an engine rank wants pieces in its own, fused or cut as it likes. A copy is where two of them meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import Region, ShardSlice


@dataclass(frozen=True)
class Copy:
    """target[to] takes source rank's param[chunk, source_param][of]; one shape."""

    rank: int
    """Position of the source in the model-parallel block."""
    chunk: int
    source: str
    of: Region
    target: str
    to: Region

    @property
    def numel(self) -> int:
        return prod(stop - start for start, stop in self.of)


def plan_copies(
    sources: Sequence[Sequence[ShardSlice]], targets: Sequence[ShardSlice], *, prefer: int = 0
) -> list[Copy]:
    """Cover every target piece exactly once.

    Args:
        sources: pieces held by each rank of the model-parallel block; replicated pieces appear on several.
        targets: pieces one engine rank wants.
        prefer: the rank to take a replicated piece from when it has it (the receiver itself); else the lowest.
    Returns:
        Copies ordered by source rank, then by target.
    Raises:
        RunError: a target piece that no rank holds, named.
    """
    order = [prefer, *(rank for rank in range(len(sources)) if rank != prefer)]
    held: dict[str, list[tuple[int, ShardSlice]]] = {}
    for rank in order:
        for piece in sources[rank]:
            held.setdefault(piece.hf_name, []).append((rank, piece))
    copies = [
        copy for target in targets for copy in _cover(target, held.get(target.hf_name, []))
    ]
    return sorted(copies, key=lambda copy: copy.rank)


def _cover(target: ShardSlice, held: Iterable[tuple[int, ShardSlice]]) -> Iterator[Copy]:
    missing = [target.hf]
    for rank, piece in held:
        left: list[Region] = []
        for box in missing:
            common = intersect(box, piece.hf)
            if common is None:
                left.append(box)
                continue
            yield Copy(
                rank=rank,
                chunk=piece.chunk,
                source=piece.param,
                of=_moved(common, piece.hf, piece.local),
                target=target.param,
                to=_moved(common, target.hf, target.local),
            )
            left += subtract(box, common)
        missing = left
    if missing:
        raise RunError(f"weight sync: no training rank holds {target.hf_name}{list(missing[0])} for {target.param}")


def intersect(a: Region, b: Region) -> Region | None:
    """The common box of two boxes, None when it is empty."""
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


def _moved(common: Region, hf: Region, local: Region) -> Region:
    """A box in the Hugging Face tensor as the box of the parameter that holds it."""
    return tuple(
        (start - origin + place, stop - origin + place)
        for (start, stop), (origin, _), (place, _) in zip(common, hf, local, strict=True)
    )
