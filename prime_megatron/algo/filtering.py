"""Which prompts teach: keep those that the policy sometimes solves (paper, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from prime_megatron.config.rollout import FilterConfig
from prime_megatron.types import Group

TOLERANCE = 1e-6
"""Slack of the inclusive bounds: a mean of fractional outcomes, or 0.2 itself, is not exact in binary."""


class FilterReason(StrEnum):
    """Why a group was kept or dropped; the members compare equal to their strings."""

    kept = "kept"
    too_easy = "too_easy"
    too_hard = "too_hard"
    truncated = "truncated"


@dataclass(frozen=True)
class FilterVerdict:
    """What becomes of a group."""

    kept: bool
    reason: FilterReason


def keep_group(group: Group, config: FilterConfig) -> FilterVerdict:
    """Keep a group when lower <= mean outcome <= upper, both inclusive.

    With drop_truncated, a group that passes and has a response cut at the length limit is dropped as "truncated"; one
    that fails on its mean keeps that reason, so "truncated" counts what the option alone costs.
    """
    mean = math.fsum(group.outcomes) / len(group.samples)
    if mean < config.lower - TOLERANCE:
        return FilterVerdict(False, FilterReason.too_hard)
    if mean > config.upper + TOLERANCE:
        return FilterVerdict(False, FilterReason.too_easy)
    if config.drop_truncated and any(sample.finish == "length" for sample in group.samples):
        return FilterVerdict(False, FilterReason.truncated)
    return FilterVerdict(True, FilterReason.kept)


@dataclass(frozen=True)
class FilterTally:
    """Groups seen by the filter, by reason."""

    kept: int = 0
    too_easy: int = 0
    too_hard: int = 0
    truncated: int = 0

    def add(self, verdict: FilterVerdict) -> FilterTally:
        """The tally with one more group."""
        counts = {reason.value: getattr(self, reason.value) for reason in FilterReason}
        counts[verdict.reason.value] += 1
        return FilterTally(**counts)

    def __add__(self, other: FilterTally) -> FilterTally:
        return FilterTally(**{r.value: getattr(self, r.value) + getattr(other, r.value) for r in FilterReason})

    @property
    def seen(self) -> int:
        """Groups judged."""
        return self.kept + self.too_easy + self.too_hard + self.truncated

    @property
    def pass_rate(self) -> float:
        """Kept over seen; nan before the first group."""
        return self.kept / self.seen if self.seen else math.nan


def prompts_to_request(needed: int, tally: FilterTally, oversample: float, most: int) -> int:
    """Prompts to generate in the next round so that about ``needed`` of them pass.

    The first round (nothing seen) asks for ceil(needed * oversample). Later rounds divide by the pass rate seen so
    far, estimated as (kept + 1) / (seen + 2) (the mean under a uniform prior), which is never 0: a batch that starves
    keeps asking for more, up to ``most``, until the cap on rounds ends it. At least ``needed`` when ``most`` allows,
    0 when nothing is needed.
    """
    assert needed >= 0 and most >= 1 and oversample >= 1.0
    if needed == 0:
        return 0
    if tally.seen == 0:
        wanted = math.ceil(needed * oversample - TOLERANCE)
    else:
        wanted = math.ceil(needed * (tally.seen + 2) / (tally.kept + 1) - TOLERANCE)
    return min(max(wanted, needed), most)
