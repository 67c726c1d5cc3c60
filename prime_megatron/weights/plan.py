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
class Destination:
    """Where receivers put a transfer."""

    ranks: tuple[int, ...]
    target: str
    to: Region


@dataclass(frozen=True, slots=True)
class Transfer:
    """The owner's param[chunk, source][of], to every destination that needs exactly this part; shipped once."""

    owner: int
    chunk: int
    source: str
    of: Region
    destinations: tuple[Destination, ...]
    receivers: tuple[int, ...]
    """Ranks that need it, in order; the owner is never one."""

    @property
    def numel(self) -> int:
        return num_elements(self.of)

    def cut(self, limit: int) -> Iterator[Transfer]:
        """The transfer in parts of at most ``limit`` elements, in the order of its elements."""
        for box in boxes_within(self.of, limit):
            destinations = tuple(
                replace(destination, to=moved(box, self.of, destination.to)) for destination in self.destinations
            )
            yield replace(self, of=box, destinations=destinations)


@dataclass(frozen=True)
class Message:
    """Transfers that one owner sends at once, back to back, all to the same ranks."""

    owner: int
    receivers: tuple[int, ...]
    transfers: tuple[Transfer, ...]
    numel: int


@dataclass(frozen=True)
class ReshardPlan:
    """How one block of ranks, which together hold the model, fills the engine tensors its ranks can reach."""

    local: tuple[tuple[Copy, ...], ...]
    """Per rank: what it copies from itself, in the order of its targets."""
    transfers: tuple[Transfer, ...]
    """What must travel, by owner, then by receivers."""

    def messages(self, limit: int) -> list[Message]:
        """Transfers packed into sends of at most ``limit`` elements; a larger transfer is cut."""
        found: list[Message] = []
        pending: list[Transfer] = []
        size = 0

        def close() -> None:
            if pending:
                found.append(Message(pending[0].owner, pending[0].receivers, tuple(pending), size))

        key: tuple[int, tuple[int, ...]] | None = None
        for transfer in (part for whole in self.transfers for part in whole.cut(limit)):
            this = (transfer.owner, transfer.receivers)
            if pending and (this != key or size + transfer.numel > limit):
                close()
                pending, size = [], 0
            key = this
            pending.append(transfer)
            size += transfer.numel
        close()
        return found


def hold(sources: Sequence[Sequence[ShardSlice]]) -> Held:
    """The pieces of every rank of a block, by Hugging Face name."""
    held: dict[str, dict[Region, dict[int, ShardSlice]]] = {}
    for rank, pieces in enumerate(sources):
        for piece in pieces:
            held.setdefault(piece.hf_name, {}).setdefault(piece.hf, {}).setdefault(rank, piece)
    return held


def plan_block(held: Held, wants: Sequence[Sequence[ShardSlice]]) -> ReshardPlan:
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
    needed: dict[tuple[int, int, str, Region], _Needed] = {}
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
                    if at not in needed:
                        needed[at] = _Needed(owner, piece)
                    needed[at].add(box, lacking, target)
    transfers = [transfer for entry in needed.values() for transfer in entry.transfers()]
    transfers.sort(key=lambda transfer: (transfer.owner, transfer.receivers))
    return ReshardPlan(tuple(tuple(merge(copies)) for copies in local), tuple(transfers))


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
class _Needed:
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

    def transfers(self) -> Iterable[Transfer]:
        for box, needs in self.boxes.items():
            destinations = tuple(
                Destination(ranks, target.param, moved(box, target.hf, target.local)) for ranks, target in needs
            )
            everyone = {rank for ranks, _ in needs for rank in ranks}
            of = moved(box, self.piece.hf, self.piece.local)
            yield Transfer(self.owner, self.piece.chunk, self.piece.param, of, destinations, tuple(sorted(everyone)))


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
