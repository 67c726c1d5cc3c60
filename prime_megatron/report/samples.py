"""The sampled responses of a run: looked through once, then as many of them as fit on the page."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_megatron.report.lines import Lines, finite, row_at
from prime_megatron.report.response import Response, response_of

TRAINED = "trained"
KINDS = (TRAINED, "rejected", "held_out", "held_out_sampled")
"""Kinds of rows, those with rewards first: the others get the room that they leave."""
OTHERS_SHARE = 0.15
"""Of the room, kept for the kinds without rewards where they need it."""


@dataclass(frozen=True)
class Place:
    """Where the siblings of one prompt are."""

    step: int
    kind: str
    draw: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """A trained response's outcome, and what the PRM said of it."""

    step: int
    probability: float
    outcome: float


@dataclass(frozen=True)
class Survey:
    """All of a samples.jsonl, without the texts."""

    path: Path
    places: Sequence[Place]
    """By step and prompt."""
    num_responses: int
    judged: Sequence[Judged]
    notes: Sequence[str]


@dataclass(frozen=True)
class Group:
    """A prompt with its responses."""

    step: int
    kind: str
    filter: str
    uid: str
    source: str
    ability: str
    truth: str
    prompt: str
    responses: Sequence[Response]


@dataclass(frozen=True)
class Shown:
    """What of a run's samples is on the page."""

    groups: Sequence[Group]
    packed: Sequence[str]
    """Each group for the page's script: JSON, deflated, base64."""
    num_responses: int
    all_responses: int


def survey(path: Path) -> Survey:
    """Look through a file; one that is not there is empty."""
    lines, judged = Lines(path), []
    offsets: dict[tuple[int, str, int], list[int]] = {}
    count = 0
    for offset, row in lines:
        kind, draw = row.get("kind"), row.get("draw")
        if kind not in KINDS or not isinstance(draw, int):
            lines.unreadable += 1
            continue
        count += 1
        offsets.setdefault((row["step"], kind, draw), []).append(offset)
        probability, outcome = finite(row.get("prm_probability")), finite(row.get("outcome"))
        if probability is not None and outcome is not None:
            judged.append(Judged(row["step"], probability, outcome))
    places = [Place(step, kind, draw, tuple(own)) for (step, kind, draw), own in sorted(offsets.items())]
    return Survey(path, places, count, judged, [] if lines.note is None else [lines.note])


def show(found: Survey, room: int) -> Shown:
    """As many groups as fit into so many bytes, whole and spread evenly over the steps."""
    chosen: list[tuple[Place, Group, str]] = []
    left = room
    for kinds, keep in ((KINDS[:1], OTHERS_SHARE), (KINDS[1:], 0.0)):
        places = [place for place in found.places if place.kind in kinds]
        others = any(place.kind not in kinds for place in found.places)
        floor = int(room * keep) if others else 0
        for place in spread(places):
            group = _read(found.path, place)
            packed = _pack(group)
            if left - len(packed) < floor:
                break
            left -= len(packed)
            chosen.append((place, group, packed))
    chosen.sort(key=lambda one: (one[0].step, KINDS.index(one[0].kind), one[0].draw))
    groups = [group for _, group, _ in chosen]
    return Shown(
        groups, [packed for _, _, packed in chosen], sum(len(group.responses) for group in groups), found.num_responses
    )


def spread(places: Sequence[Place]) -> Iterator[Place]:
    """All of them, in an order of which every beginning is spread evenly: by the reversed bits of their index."""
    bits = max(1, (len(places) - 1).bit_length())
    for index in range(1 << bits):
        reversed_index = int(f"{index:0{bits}b}"[::-1], 2)
        if reversed_index < len(places):
            yield places[reversed_index]


def _read(path: Path, place: Place) -> Group:
    rows = [row_at(path, offset) for offset in place.offsets]
    first = rows[0]
    texts = {
        key: str(first.get(key) or "") for key in ("filter", "uid", "data_source", "ability", "ground_truth", "prompt")
    }
    return Group(
        step=place.step, kind=place.kind, filter=texts["filter"], uid=texts["uid"], source=texts["data_source"],
        ability=texts["ability"], truth=texts["ground_truth"], prompt=texts["prompt"],
        responses=sorted((response_of(row) for row in rows), key=lambda response: response.sample),
    )  # fmt: skip


def _pack(group: Group) -> str:
    row: dict[str, Any] = {
        "prompt": group.prompt, "truth": group.truth, "s": [response.packed() for response in group.responses]
    }  # fmt: skip
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"))).decode("ascii")
