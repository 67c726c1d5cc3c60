"""An arm held against outcome-only RLOO, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.compare_work.curves import passage
from tools.compare_work.record import Record


@dataclass(frozen=True)
class Contest:
    """One seed of an arm against the same seed of RLOO."""

    seed: int
    record: Record
    rloo: Record
    steps: float | None
    """To RLOO's final sampled accuracy; None: not reached."""
    rloo_steps: float
    seconds: float | None
    """Of training, to the same."""
    rloo_seconds: float
    beside: bool
    """The two ran at the same time on one machine, for at least half of the shorter: their seconds may be compared."""

    @property
    def ratio(self) -> float | None:
        return None if self.steps is None else self.steps / self.rloo_steps

    @property
    def seconds_ratio(self) -> float | None:
        return None if self.seconds is None or not self.beside else self.seconds / self.rloo_seconds


def contest(record: Record, rloo: Record) -> Contest:
    """The level is RLOO's final sampled accuracy; each curve's passage is that of its smoothed values."""
    level = rloo.sampled_curve.final
    rloo_steps = passage(rloo.sampled_curve, level)
    assert rloo_steps is not None, "a smoothed curve ends at its own final value"
    steps = passage(record.sampled_curve, level)
    overlap = min(record.ended, rloo.ended) - max(record.began, rloo.began)
    shorter = min(record.ended - record.began, rloo.ended - rloo.began)
    return Contest(
        seed=record.seed,
        record=record,
        rloo=rloo,
        steps=steps,
        rloo_steps=rloo_steps,
        seconds=None if steps is None else record.seconds_curve.at(steps),
        rloo_seconds=rloo.seconds_curve.at(rloo_steps),
        beside=record is rloo or overlap >= shorter / 2,
    )


def contests(records: Sequence[Record], rloo: Sequence[Record]) -> list[Contest]:
    """Of the seeds that both have, in order."""
    by_seed = {record.seed: record for record in rloo}
    return [contest(record, by_seed[record.seed]) for record in records if record.seed in by_seed]


def mean(values: Sequence[float | None]) -> float | None:
    """None where a value is missing, or all are."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
