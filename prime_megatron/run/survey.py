"""How many rows of the data a run leaves out, told at its start: every row is tried once, a share on each rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prime_megatron.data.encode import Skip
from prime_megatron.data.stream import RowStream
from prime_megatron.errors import InputError
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class Survey:
    """Rows of the data, the same on every rank."""

    num_rows: int
    skipped: Mapping[Skip, int]
    """Rows that the stream skips, by the reason."""
    line: str | None
    """For the run's start; None: no row is skipped."""

    @property
    def num_skipped(self) -> int:
        """Rows that the stream skips."""
        return sum(self.skipped.values())


def survey(stream: RowStream[Any, Any], topology: Topology) -> Survey:
    """Try every row of the stream. Collective over the world.

    Raises:
        InputError: on every rank; a row that cannot be rendered, or every row is skipped.
    """
    rank, world = topology.rank, topology.sizes.world
    refused: tuple[int, str] | None = None
    skips: list[tuple[int, Skip]] = []
    for index in range(rank, stream.num_rows, world):
        try:
            skip = stream.skip_of(index)
        except InputError as error:
            refused = (index, str(error))
            break
        if skip is not None:
            skips.append((index, skip))
    everyones = gather_all((refused, skips))
    refusals = sorted(refused for refused, _ in everyones if refused is not None)
    if refusals:
        raise InputError(refusals[0][1])
    found = sorted(pair for _, pairs in everyones for pair in pairs)
    if len(found) == stream.num_rows:
        stream.check_usable()
    counts = Counter(skip for _, skip in found)
    line = None
    if found:
        line = (
            f"data.train: {len(found)} of {stream.num_rows} rows are skipped: {stream.why(counts)}; "
            f"the first is {stream.origin(found[0][0])}"
        )
    return Survey(stream.num_rows, counts, line)
