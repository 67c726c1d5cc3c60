"""Whether a reshard plan writes every element of every engine tensor exactly once, and from the right place.

Told from the boxes of the plan alone, by other arithmetic than the one that made it: volumes and coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from prime_megatron.parallel.shards import Region, ShardSlice
from prime_megatron.weights.boxes import intersect, moved, num_elements
from prime_megatron.weights.plan import ReshardPlan

_Write = tuple[int, int, str, Region, Region]
"""Owner (position in the block), chunk, parameter, box of it, box of the target."""


def wrong_write(
    plan: ReshardPlan, sources: Sequence[Sequence[ShardSlice]], wants: Sequence[Sequence[ShardSlice]], limit: int
) -> str | None:
    """The first fault of a plan; None: there is none.

    Args:
        sources: pieces that each rank of the block holds.
        wants: pieces of the engine tensors that each rank fills.
        limit: elements of a message.
    """
    held: dict[tuple[int, int, str], list[ShardSlice]] = defaultdict(list)
    for rank, pieces in enumerate(sources):
        for piece in pieces:
            held[rank, piece.chunk, piece.param].append(piece)
    writes = _writes(plan, limit)
    for rank, pieces in enumerate(wants):
        targets: dict[str, list[ShardSlice]] = defaultdict(list)
        for piece in pieces:
            targets[piece.param].append(piece)
        for target in targets.keys() | writes[rank].keys():
            fault = _fault(writes[rank][target], held, targets[target])
            if fault is not None:
                return f"rank {rank} of the block, {target}: {fault}"
    return None


def wrong_layout(
    pieces_of: Sequence[Sequence[ShardSlice]], shapes: Mapping[str, tuple[int, ...]], padding: Mapping[str, int]
) -> str | None:
    """The first fault of an engine's own layout: a tensor that its pieces do not fill, or fill twice; a tensor of the
    model that the ranks together do not have.

    Args:
        pieces_of: of each tensor-parallel rank.
        shapes: of its tensors, equal on all ranks.
        padding: elements that no piece fills, by tensor, over all ranks.
    """
    missing: dict[str, int] = defaultdict(int)
    parts: dict[str, set[Region]] = defaultdict(set)
    whole: dict[str, int] = {}
    for rank, pieces in enumerate(pieces_of):
        boxes: dict[str, list[Region]] = defaultdict(list)
        for piece in pieces:
            boxes[piece.param].append(piece.local)
            parts[piece.hf_name].add(piece.hf)
            whole[piece.hf_name] = prod(piece.hf_shape)
        if boxes.keys() != shapes.keys():
            # A rank may hold only padding of the vocabulary.
            odd = {name for name in boxes.keys() ^ shapes.keys() if name not in padding}
            if odd:
                return f"rank {rank} of the engine: {min(odd)} is in its layout or in its shapes alone"
        for name, shape in shapes.items():
            if (twice := _overlap(boxes[name])) is not None:
                return f"rank {rank} of the engine, {name}: {_told(twice)} is filled twice"
            missing[name] += prod(shape) - sum(map(num_elements, boxes[name]))
    for name, count in missing.items():
        if count != padding.get(name, 0):
            return f"{name} of the engine: {count - padding.get(name, 0)} elements are filled by nothing"
    for name, regions in parts.items():
        if _overlap(regions) is not None or sum(map(num_elements, regions)) != whole[name]:
            return f"{name}: the engine's ranks together do not hold it once"
    return None


def wrong_source(shapes: Mapping[tuple[int, str], tuple[int, ...]], pieces: Iterable[ShardSlice]) -> str | None:
    """The first piece that a rank's parameters, as Megatron built them, do not have room for; a parameter that no piece
    speaks of."""
    boxes: dict[tuple[int, str], list[Region]] = defaultdict(list)
    for piece in pieces:
        boxes[piece.chunk, piece.param].append(piece.local)
    for key in boxes.keys() ^ shapes.keys():
        return f"chunk {key[0]}, {key[1]}: is {'no parameter' if key in boxes else 'in no piece of the plan'}"
    for key, regions in boxes.items():
        whole: Region = tuple((0, size) for size in shapes[key])
        outside = next((box for box in regions if len(box) != len(whole) or intersect(box, whole) != box), None)
        if outside is not None:
            return f"chunk {key[0]}, {key[1]}: {_told(outside)} is outside of {list(shapes[key])}"
        if (twice := _overlap(regions)) is not None:
            return f"chunk {key[0]}, {key[1]}: {_told(twice)} is two pieces at once"
    return None


def _writes(plan: ReshardPlan, limit: int) -> list[dict[str, list[_Write]]]:
    """What every rank writes, by target: its own copies, and what the messages bring it."""
    found: list[dict[str, list[_Write]]] = [defaultdict(list) for _ in plan.local]
    for rank, copies in enumerate(plan.local):
        for copy in copies:
            found[rank][copy.target].append((rank, copy.chunk, copy.source, copy.of, copy.to))
    for message in plan.messages(limit):
        for transfer in message.transfers:
            for place in transfer.destinations:
                for rank in place.ranks:
                    write = (transfer.owner, transfer.chunk, transfer.source, transfer.of, place.to)
                    found[rank][place.target].append(write)
    return found


def _fault(
    writes: Sequence[_Write], held: Mapping[tuple[int, int, str], Sequence[ShardSlice]], wanted: Sequence[ShardSlice]
) -> str | None:
    if (twice := _overlap([write[-1] for write in writes])) is not None:
        return f"{_told(twice)} is written twice"
    for owner, chunk, param, of, to in writes:
        right = 0
        for piece in held[owner, chunk, param]:
            box = intersect(of, piece.local)
            if box is not None:
                right += _right(piece.hf_name, moved(box, piece.local, piece.hf), moved(box, of, to), wanted)
        if right != num_elements(to):
            return f"{_told(to)} comes from elsewhere ({param} of rank {owner})"
    lacking = sum(num_elements(piece.local) for piece in wanted) - sum(num_elements(write[-1]) for write in writes)
    return f"{lacking} elements are written by nothing" if lacking else None


def _right(name: str, region: Region, to: Region, wanted: Sequence[ShardSlice]) -> int:
    """Elements of a box of the target that are to hold just this region of this tensor."""
    count = 0
    for piece in wanted:
        if piece.hf_name != name:
            continue
        box = intersect(to, piece.local)
        if box is not None and moved(box, piece.local, piece.hf) == moved(box, to, region):
            count += num_elements(box)
    return count


def _overlap(boxes: Iterable[Region]) -> Region | None:
    """What two of the boxes have in common; None: they are disjoint."""
    open_: list[Region] = []
    for box in sorted(boxes):
        open_ = [other for other in open_ if other[0][1] > box[0][0]]
        for other in open_:
            if (common := intersect(box, other)) is not None:
                return common
        open_.append(box)
    return None


def _told(box: Region) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
