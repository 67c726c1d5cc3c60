"""Stage `dedup`: what is compared of every row is kept in blocks; then the bands are gone through, and rows decided."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prime_megatron.config.curate import DedupConfig
from prime_megatron.curate.decision import Decision, drop, keep
from prime_megatron.curate.duplicates import Likeness, candidates, likeness_of, signatures, why_duplicate
from prime_megatron.curate.row import CuratedRow
from prime_megatron.errors import InputError
from prime_megatron.generate.blocks import Blocks

Found = tuple[str, str]
"""(rule, why)"""


def check_bands(config: DedupConfig) -> None:
    """Raises InputError where a signature cannot be cut into the bands."""
    if config.permutations % config.bands:
        raise InputError(f"dedup.bands: {config.bands} does not divide dedup.permutations ({config.permutations})")


def compared_lines(rows: Sequence[CuratedRow], config: DedupConfig) -> Iterator[bytes]:
    """A block's lines: [id, signs, numbers, truth, signature]."""
    likenesses = [likeness_of(row) for row in rows]
    for row, likeness, signature in zip(rows, likenesses, signatures(likenesses, config), strict=True):
        packed = base64.b64encode(signature.tobytes()).decode()
        line = [row.id, " ".join(likeness.signs), " ".join(likeness.numbers), likeness.truth, packed]
        yield json.dumps(line).encode() + b"\n"


class Compared:
    """The lines of all blocks, read by row.

    Args:
        blocks: with `compared_lines`.
        count: of blocks.
        size: rows of a block.
    """

    def __init__(self, blocks: Blocks, count: int, size: int) -> None:
        self._blocks, self._count, self._size = blocks, count, size
        self._offsets = array("q")

    def write_signatures(self, path: Path) -> None:
        """Gather all signatures in one file, and note where the rows are."""
        with path.open("wb") as file:
            for index in range(self._count):
                offset = 0
                for line in self._blocks.lines(index):
                    self._offsets.append(offset)
                    offset += len(line)
                    file.write(base64.b64decode(line[line.rindex(b', "') + 3 : -3]))

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, number: int) -> tuple[str, Likeness]:
        """(id, what is compared) of a row."""
        name, signs, numbers, truth, _ = json.loads(self._blocks.line_at(number // self._size, self._offsets[number]))
        return name, Likeness(tuple(signs.split(" ")), tuple(numbers.split(" ")), truth)


def find_duplicates(
    compared: Compared, folder: Path, config: DedupConfig, tell: Callable[[int, int, str], None]
) -> dict[int, Found]:
    """The rows to drop, with why: row number -> (rule, why)."""
    path = folder / "signatures"
    compared.write_signatures(path)
    keeper: dict[int, int] = {}
    found: dict[int, Found] = {}
    for number, earlier in candidates(path, len(compared), config, tell):
        _, row = compared.row(number)
        for first in sorted({keeper.get(one, one) for one in earlier}):
            name, other = compared.row(first)
            why = why_duplicate(row, other, config)
            if why is not None:
                keeper[number] = first
                found[number] = (why[0], f"{why[1]} as {name}")
                break
        tell(number + 1, len(compared), "rows")
    path.unlink()
    return found


def decide_duplicates(rows: Iterator[list[CuratedRow]], found: dict[int, Found]) -> Iterator[Decision]:
    """All rows, in their order, with the decision about each."""
    number = 0
    for batch in rows:
        for row in batch:
            why = found.get(number)
            yield keep(row) if why is None else drop(row, *why)
            number += 1
