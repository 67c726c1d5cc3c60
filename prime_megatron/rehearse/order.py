"""Whether the ranks ask for the same things of each other: NCCL runs the collectives of a group in the order in which
each rank asks for them, so a group whose members differ in it hangs, or mixes up its data.

Only the order within one group is held against another rank's: groups have communicators and streams of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from prime_megatron.mcore.fake_calls import Call

_UNEVEN = ("alltoall_base_", "alltoall_")
"""How much they carry is the routing's to say."""


def disagreement(calls_of: Mapping[int, Sequence[Call]]) -> str | None:
    """The first group, or pair of ranks, that does not agree; None: all that were heard do.

    calls_of: by global rank, in order. A rank that is not there says nothing.
    """
    together: dict[tuple[str, tuple[int, ...]], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    sent: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    received: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for rank, calls in calls_of.items():
        for call in calls:
            if rank not in call.ranks:
                return f"rank {rank} asks group {call.group} for {call.name}, of which it is no member"
            if call.is_send:
                assert call.peer is not None
                sent[call.group, rank, call.peer].append(_told(call))
            elif call.is_receive:
                assert call.peer is not None
                received[call.group, call.peer, rank].append(_told(call))
            else:
                together[call.group, call.ranks][rank].append(f"{call.name} {_told(call)}")
    for (group, ranks), heard in together.items():
        members = sorted(rank for rank in ranks if rank in calls_of)
        fault = _first(f"group {group} of ranks {list(ranks)}", [(f"rank {r}", heard[r]) for r in members])
        if fault is not None:
            return fault
    for group, source, target in sent.keys() | received.keys():
        if source in calls_of and target in calls_of:
            ends = [(f"rank {source} sends", sent[group, source, target])]
            ends.append((f"rank {target} receives", received[group, source, target]))
            if (fault := _first(f"group {group}, messages from {source} to {target}", ends)) is not None:
                return fault
    return None


def _told(call: Call) -> str:
    root = "" if call.peer is None or call.is_send or call.is_receive else f" from {call.peer}"
    return f"{call.dtype} {'' if call.name in _UNEVEN else call.numel}{root}"


def _first(where: str, heard: Sequence[tuple[str, Sequence[str]]]) -> str | None:
    """Where one of several lists first parts from the first of them."""
    first, expected = heard[0]
    for name, found in heard[1:]:
        for index in range(max(len(expected), len(found))):
            a, b = (list_[index] if index < len(list_) else "nothing more" for list_ in (expected, found))
            if a != b:
                return f"{where}: call {index}: {first}: {a}; {name}: {b}"
    return None
