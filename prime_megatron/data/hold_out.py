"""A share of the supervised rows, kept from learning to be measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prime_megatron.data.rows import SftRow
from prime_megatron.errors import InputError


def hold_out(rows: Sequence[SftRow], share: float, seed: int) -> tuple[list[SftRow], list[SftRow]]:
    """(rows to learn, rows to measure), both in file order. All examples of one row of a file are on one side.

    Args:
        rows: of the training files.
        share: of the files' rows that is measured, 0 < share < 1; at least one is.
        seed: names the draw.

    Raises:
        InputError: no row is left to learn.
    """
    origins = list(dict.fromkeys(row.origin for row in rows))
    count = max(1, round(share * len(origins)))
    if count == len(origins):
        raise InputError(
            f"data.held_out_share: {share} of {len(origins)} rows leaves none to learn; lower it, or give data.held_out"
        )
    held = set(random.Random(f"{seed}/held out").sample(origins, count))
    return [row for row in rows if row.origin not in held], [row for row in rows if row.origin in held]
