"""Near-duplicates among rows: the later of two alike problems goes.

MinHash signatures (rensa) are cut into bands; rows that share a band are candidates, and the Jaccard similarity of
their shingles decides, not its estimate. Held in memory are numbers alone, about 8 bytes a row and band; signatures are
made block by block on disk, and texts are read again where a pair is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rensa import RMinHash

from prime_megatron.config.curate import DedupConfig
from prime_megatron.curate.row import CuratedRow
from prime_megatron.curate.short_texts import word_edits
from prime_megatron.curate.words import hash64, numbers_of, signs_of
from prime_megatron.evaluate.votes import vote_of

_ODD = np.uint64(0x9E3779B97F4A7C15)
_LEAST_SIGNS = 8
"""Words and marks from which one of them may differ."""
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"


@dataclass(frozen=True)
class Likeness:
    """What of a row is compared with others."""

    signs: tuple[str, ...]
    """Words and marks, in order."""
    numbers: tuple[str, ...]
    truth: str
    """The ground truth in one spelling; empty: none, or a program's tests, which differ from source to source."""

    def shingles(self, size: int) -> frozenset[tuple[str, ...]]:
        """Runs of ``size`` words; the whole text where it is shorter."""
        return frozenset(self.signs[at : at + size] for at in range(max(1, len(self.signs) - size + 1)))


def likeness_of(row: CuratedRow) -> Likeness:
    """What of a row is compared."""
    truth = row.ground_truth if row.ground_truth is not None and row.ability != "code" else ""
    spelled = vote_of("math", f"\\boxed{{{truth}}}") if truth and row.ability == "math" else truth
    return Likeness(tuple(signs_of(row.problem)), tuple(numbers_of(row.problem)), spelled or truth)


def signatures(rows: Sequence[Likeness], config: DedupConfig) -> np.ndarray:
    """[rows, 1 + bands] uint64: a hash of all signs, then one for each band of the MinHash signature."""
    sets = [[" ".join(one) for one in row.shingles(config.shingle)] for row in rows]
    digests = np.array(RMinHash.digests_from_token_sets(sets, config.permutations, config.seed), dtype=np.uint64)
    found = np.empty((len(rows), 1 + config.bands), dtype=np.uint64)
    found[:, 0] = [hash64(" ".join(row.signs)) for row in rows]
    # The same numbers, then the same band: a candidate must agree in both.
    salts = [hash64(" ".join(row.numbers)) if config.numbers == "same" else 0 for row in rows]
    mixed = np.repeat(np.array(salts, dtype=np.uint64)[:, None], config.bands, axis=1)
    for column in np.moveaxis(digests.reshape(len(rows), config.bands, -1), 2, 0):
        mixed = (mixed ^ column) * _ODD
        mixed ^= mixed >> np.uint64(29)
    found[:, 1:] = mixed
    return found


def leaders(column: np.ndarray) -> np.ndarray:
    """[rows] int64: of each row the first row that has the same value."""
    order = np.argsort(column, kind="stable")
    sorted_values = column[order]
    starts = np.flatnonzero(np.r_[True, sorted_values[1:] != sorted_values[:-1]])
    first = np.repeat(order[starts], np.diff(np.r_[starts, len(column)]))
    found = np.empty(len(column), dtype=np.int64)
    found[order] = first
    return found


def candidates(
    path: Path, rows: int, config: DedupConfig, tell: Callable[[int, int, str], None]
) -> Iterator[tuple[int, list[int]]]:
    """(row, earlier rows that it may copy, the nearest in the file first), in the order of the rows.

    path: a file of ``rows`` signatures as `signatures` makes them.
    """
    table = np.memmap(path, dtype=np.uint64, mode="r", shape=(rows, 1 + config.bands))
    firsts = np.empty((rows, 1 + config.bands), dtype=np.int32 if rows < 2**31 else np.int64)
    for column in range(1 + config.bands):
        firsts[:, column] = leaders(np.ascontiguousarray(table[:, column]))
        tell(column + 1, 1 + config.bands, "bands")
    alone = (firsts == np.arange(rows, dtype=firsts.dtype)[:, None]).all(axis=1)
    for row in np.flatnonzero(~alone):
        yield int(row), sorted({int(first) for first in firsts[row] if first != row})


def similarity(one: Likeness, other: Likeness, size: int) -> float:
    """Jaccard similarity of two rows' shingles."""
    a, b = one.shingles(size), other.shingles(size)
    return len(a & b) / len(a | b)


def why_duplicate(row: Likeness, earlier: Likeness, config: DedupConfig) -> tuple[str, str] | None:
    """(rule, why) where ``row`` copies ``earlier``; None: it does not."""
    if row.signs == earlier.signs:
        other = " with another ground truth" if row.truth and earlier.truth and row.truth != earlier.truth else ""
        return DUPLICATE, f"the same words{other}"
    if config.numbers == "same" and row.numbers != earlier.numbers:
        return None
    if row.truth and earlier.truth and row.truth != earlier.truth:
        return None
    alike = similarity(row, earlier, config.shingle)
    if alike >= config.similarity:
        return NEAR_DUPLICATE, f"{alike:.2f} alike"
    one_apart = (
        row.truth and earlier.truth and len(row.signs) >= _LEAST_SIGNS and word_edits(row.signs, earlier.signs, 1)
    )
    return (NEAR_DUPLICATE, "all words but one the same") if one_apart else None
