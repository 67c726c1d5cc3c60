"""Which slice of which training shard goes where in the engine; pure arithmetic on boxes, made once.

Both sides speak of pieces of Hugging Face tensors (``parallel.shards.ShardSlice``): a training rank holds pieces in
its parameters, an engine rank wants pieces in its own, fused or cut as it likes. A copy is where two of them meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import Region, ShardSlice
from prime_megatron.weights.boxes import boxes_within, extended, intersect, moved, num_elements, subtract

Held = Mapping[str, Mapping[Region, Mapping[int, ShardSlice]]]
"""For every Hugging Face tensor the boxes that it is held in, and who holds each, lowest rank first."""


@dataclass(frozen=True, slots=True)
class Copy:
    """target[to] takes this rank's param[chunk, source][of]; one shape."""

    chunk: int
    source: str
    of: Region
    target: str
    to: Region

    @property
    def numel(self) -> int:
        return num_elements(self.of)


@dataclass(frozen=True, slots=True)
class Place:
    """Where receivers put a parcel."""

    ranks: tuple[int, ...]
    target: str
    to: Region


@dataclass(frozen=True, slots=True)
class Parcel:
    """The owner's param[chunk, source][of], to every place that needs exactly this part; shipped once."""

    owner: int
    chunk: int
    source: str
    of: Region
    places: tuple[Place, ...]
    receivers: tuple[int, ...]
    """Ranks that need it, in order; the owner is never one."""

    @property
    def numel(self) -> int:
        return num_elements(self.of)

    def cut(self, limit: int) -> Iterator[Parcel]:
        """The parcel in parts of at most ``limit`` elements, in the order of its elements."""
        for box in boxes_within(self.of, limit):
            places = tuple(replace(place, to=moved(box, self.of, place.to)) for place in self.places)
            yield replace(self, of=box, places=places)


@dataclass(frozen=True)
class Shipment:
    """Parcels that one owner sends at once, back to back, all to the same ranks."""

    owner: int
    receivers: tuple[int, ...]
    parcels: tuple[Parcel, ...]
    numel: int


@dataclass(frozen=True)
class Plan:
    """How one block of ranks, which together hold the model, fills the engine tensors its ranks can reach."""

    local: tuple[tuple[Copy, ...], ...]
    """Per rank: what it copies from itself, in the order of its targets."""
    parcels: tuple[Parcel, ...]
    """What must travel, by owner, then by receivers."""

    def shipments(self, limit: int) -> list[Shipment]:
        """Parcels packed into sends of at most ``limit`` elements; a larger parcel is cut."""
        found: list[Shipment] = []
        pending: list[Parcel] = []
        size = 0

        def close() -> None:
            if pending:
                found.append(Shipment(pending[0].owner, pending[0].receivers, tuple(pending), size))

        key: tuple[int, tuple[int, ...]] | None = None
        for parcel in (part for whole in self.parcels for part in whole.cut(limit)):
            this = (parcel.owner, parcel.receivers)
            if pending and (this != key or size + parcel.numel > limit):
                close()
                pending, size = [], 0
            key = this
            pending.append(parcel)
            size += parcel.numel
        close()
        return found


def hold(sources: Sequence[Sequence[ShardSlice]]) -> Held:
    """The pieces of every rank of a block, by Hugging Face name."""
    held: dict[str, dict[Region, dict[int, ShardSlice]]] = {}
    for rank, pieces in enumerate(sources):
        for piece in pieces:
            held.setdefault(piece.hf_name, {}).setdefault(piece.hf, {}).setdefault(rank, piece)
    return held


def plan_block(held: Held, wants: Sequence[Sequence[ShardSlice]]) -> Plan:
    """Cover every wanted piece exactly once.

    A part that the receiver holds itself is taken from there. Any other part has one owner for all who need it, the
    lowest rank that holds it; it is cut so that a receiver needs it whole or not at all, and travels once.

    Args:
        held: what the block's ranks hold, from ``hold``.
        wants: per rank of the block, the pieces of the engine tensors that it fills; may be empty.
    Raises:
        RunError: a wanted piece that no rank holds, named.
    """
    local: list[list[Copy]] = [[] for _ in wants]
    cargo: dict[tuple[int, int, str, Region], _Cargo] = {}
    covers: dict[tuple[str, Region], _Cover] = {}
    for pieces, ranks in _alike(wants):
        for target in pieces:
            key = (target.hf_name, target.hf)
            if key not in covers:
                covers[key] = _cover(target, held)
            for box, holders in covers[key]:
                to = moved(box, target.hf, target.local)
                for rank in ranks:
                    if rank in holders:
                        piece = holders[rank]
                        of = moved(box, piece.hf, piece.local)
                        local[rank].append(Copy(piece.chunk, piece.param, of, target.param, to))
                lacking = tuple(rank for rank in ranks if rank not in holders)
                if lacking:
                    owner, piece = next(iter(holders.items()))
                    at = (owner, piece.chunk, piece.param, piece.local)
                    if at not in cargo:
                        cargo[at] = _Cargo(owner, piece)
                    cargo[at].add(box, lacking, target)
    parcels = [parcel for entry in cargo.values() for parcel in entry.parcels()]
    parcels.sort(key=lambda parcel: (parcel.owner, parcel.receivers))
    return Plan(tuple(tuple(merge(copies)) for copies in local), tuple(parcels))


_Cover = list[tuple[Region, Mapping[int, ShardSlice]]]
"""Disjoint boxes that make up a wanted piece, each with who holds it."""


def _alike(wants: Sequence[Sequence[ShardSlice]]) -> list[tuple[Sequence[ShardSlice], tuple[int, ...]]]:
    """Ranks that want the same, together: a plan costs as much as its pieces, not times its ranks."""
    found: list[tuple[Sequence[ShardSlice], list[int]]] = []
    for rank, pieces in enumerate(wants):
        ranks = next((ranks for known, ranks in found if known is pieces or known == pieces), None)
        if ranks is None:
            found.append((pieces, [rank]))
        else:
            ranks.append(rank)
    return [(pieces, tuple(ranks)) for pieces, ranks in found]


def _cover(target: ShardSlice, held: Held) -> _Cover:
    found: _Cover = []
    missing = [target.hf]
    for whole, holders in held.get(target.hf_name, {}).items():
        left: list[Region] = []
        for box in missing:
            common = intersect(box, whole)
            if common is None:
                left.append(box)
            else:
                found.append((common, holders))
                left += subtract(box, common)
        missing = left
    if missing:
        raise RunError(f"weight sync: no training rank holds {target.hf_name}{list(missing[0])} for {target.param}")
    return found


_Needs = tuple[tuple[tuple[int, ...], ShardSlice], ...]


@dataclass
class _Cargo:
    """What others need of one source piece: disjoint boxes, each with everyone who needs all of it."""

    owner: int
    piece: ShardSlice
    boxes: dict[Region, _Needs] = field(default_factory=dict)

    def add(self, box: Region, ranks: tuple[int, ...], target: ShardSlice) -> None:
        """Note a need, cutting boxes where it covers only a part of them."""
        need = (ranks, target)
        if box in self.boxes:
            self.boxes[box] += (need,)
            return
        missing = [box]
        known = list(self.boxes.items())
        self.boxes = {}
        while known:
            old, needs = known.pop()
            meets = ((index, intersect(old, part)) for index, part in enumerate(missing))
            index, common = next(((i, c) for i, c in meets if c is not None), (0, None))
            if common is None:
                self.boxes[old] = needs
                continue
            known += [(rest, needs) for rest in subtract(old, common)]
            missing[index : index + 1] = subtract(missing[index], common)
            self.boxes[common] = (*needs, need)
        self.boxes |= dict.fromkeys(missing, (need,))

    def parcels(self) -> Iterable[Parcel]:
        for box, needs in self.boxes.items():
            places = tuple(Place(ranks, target.param, moved(box, target.hf, target.local)) for ranks, target in needs)
            everyone = {rank for ranks, _ in needs for rank in ranks}
            of = moved(box, self.piece.hf, self.piece.local)
            yield Parcel(self.owner, self.piece.chunk, self.piece.param, of, places, tuple(sorted(everyone)))


def merge(copies: Iterable[Copy]) -> list[Copy]:
    """Neighbouring copies between the same two tensors as one, where they are adjacent on both sides."""
    merged: list[Copy] = []
    for copy in copies:
        joined = _joined(merged[-1], copy) if merged else None
        if joined is None:
            merged.append(copy)
        else:
            merged[-1] = joined
    return merged


def _joined(a: Copy, b: Copy) -> Copy | None:
    if (a.chunk, a.source, a.target) != (b.chunk, b.source, b.target):
        return None
    for dim in range(len(a.of)):
        of, to = extended(a.of, b.of, dim), extended(a.to, b.to, dim)
        if of is not None and to is not None:
            return Copy(a.chunk, a.source, of, a.target, to)
    return None
