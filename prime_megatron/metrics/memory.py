"""Bytes of every model, by kind and place: as figures, and as a table to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

TRAINING, GENERATION = {"updated": "training"}, {"cache_awake": "generation"}
"""Edges of a step (see ``colocation``) that the table shows, and what it calls them."""
LEARNS = "_learns"
"""Where models take turns, the edges at which one begins to learn are shown in place of the end of training."""
PLACES = ("device", "host")


class Memory(Protocol):
    """What a model holds, in bytes by kind (see ``mcore.offload``)."""

    def device_bytes(self) -> Mapping[str, int]: ...

    def host_bytes(self) -> Mapping[str, int]: ...


class Holder(Protocol):
    """A model with a name."""

    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> Memory: ...


def role_bytes(models: Iterable[Holder]) -> dict[str, int]:
    """<role>/<kind>_device_bytes and <role>/<kind>_host_bytes of every model on this rank.

    Kinds are parameters, gradients and optimizer. Host bytes are those of the buffers that the model moves to, which
    stay when it comes back. A CPU's device memory is the host's.
    """
    found: dict[str, int] = {}
    for model in models:
        for place, sizes in zip(PLACES, (model.memory.device_bytes(), model.memory.host_bytes()), strict=True):
            found |= {f"{model.name}/{kind}_{place}_bytes": count for kind, count in sizes.items()}
    return found


def memory_table(figures: Mapping[str, Any], rank: int) -> str:
    """Role, kind, and megabytes (10^6) on device and host while training (in each update, where models take turns) and
    while generating, with sums.

    figures: memory/<edge>/<role>/<kind>_<place>_bytes; what a model never has is left out. Empty where there is none.
    """
    edges = dict.fromkeys(key.split("/")[1] for key in figures if key.count("/") == 3)
    turns = {edge: f"{edge.removesuffix(LEARNS)} update" for edge in edges if edge.endswith(LEARNS)}
    phases = (turns or TRAINING) | GENERATION
    table: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for key, value in figures.items():
        parts = key.split("/")
        if len(parts) == 4 and parts[1] in phases:
            kind, place, _ = parts[3].rsplit("_", 2)
            table.setdefault((parts[2], kind), {})[parts[1], place] = value
    table = {names: cells for names, cells in table.items() if any(cells.values())}
    if not table:
        return ""
    columns = [(edge, place) for edge in phases for place in PLACES]
    headings = [f"{name}, {place}" for name in phases.values() for place in PLACES]
    rows = [["role", "kind", *headings]]
    rows += [[*names, *(_mb(cells.get(column, 0)) for column in columns)] for names, cells in table.items()]
    rows.append(["all", "", *(_mb(sum(cells.get(column, 0) for cells in table.values())) for column in columns)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([f"memory of the models on rank {rank}, MB:", *lines])


def _mb(count: float) -> str:
    return f"{count / 1e6:,.3f}"
