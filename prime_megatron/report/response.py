"""A row of samples.jsonl as the page shows it; what an older version or another writer left out is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prime_megatron.report.lines import finite, number

DIGITS = 1000
"""Rewards are kept in so many parts of the response's largest one."""


@dataclass(frozen=True)
class Response:
    """One response; the lists have one entry per token, and are empty where the row has none."""

    sample: int
    outcome: float
    verdict: str
    reason: str
    finish: str
    probability: float | None
    """The PRM's, of outcome 1."""
    text: str
    ends: Sequence[int]
    """Where in the text tokens end; empty in a row of an older version."""
    token_ids: Sequence[int]
    rewards: Sequence[float]
    steps: Sequence[int]
    """Last tokens of its steps: those of the PRM's granularity, or of its lines."""

    @property
    def right(self) -> bool:
        return self.outcome > 0.5

    @property
    def total(self) -> float:
        """Sum of its rewards, those that are numbers."""
        return math.fsum(reward for reward in self.rewards if math.isfinite(reward))

    @property
    def disagrees(self) -> bool:
        """Whether the PRM holds it for what it is not; without its probability the sum of rewards speaks for it."""
        if self.probability is not None:
            return (self.probability > 0.5) != self.right
        return bool(self.rewards) and (self.total > 0.0) != self.right

    @property
    def pieces(self) -> list[str]:
        """The text of every token; "#id" where its end is not known."""
        if not self.ends:
            return [f"#{token}" for token in self.token_ids]
        return [self.text[start:end] for start, end in pairwise((0, *self.ends))]

    def packed(self) -> dict[str, Any]:
        """For the page's script: offsets in UTF-16 units, as it counts them, and rewards as whole numbers."""
        finite = [abs(reward) for reward in self.rewards if math.isfinite(reward)]
        unit = max(finite, default=0.0) / DIGITS
        rewards = [(round(r / unit) if unit else 0) if math.isfinite(r) else None for r in self.rewards]
        return {
            "k": self.sample, "o": self.outcome, "v": self.verdict, "w": self.reason, "f": self.finish,
            "p": None if self.probability is None else round(self.probability, 5),
            "t": self.text,
            "e": [end - start for start, end in pairwise((0, *utf16_places(self.text, self.ends)))],
            "i": [] if self.ends else list(self.token_ids),
            "u": float(f"{unit:.4g}"),
            "r": rewards,
            "st": list(self.steps),
        }  # fmt: skip


def response_of(row: Mapping[str, Any]) -> Response:
    """A row's response. What does not fit together (ends beyond the text, another number of rewards) is left out."""
    text = row["response"] if isinstance(row.get("response"), str) else ""
    token_ids = _whole(row.get("token_ids"))
    ends = _whole(row.get("token_ends"))
    if len(ends) != len(token_ids) or any(a > b for a, b in pairwise((0, *ends, len(text)))):
        ends = []
    rewards = [math.nan if (r := number(value)) is None else r for value in _list(row.get("process_rewards"))]
    if len(rewards) != len(token_ids):
        rewards = []
    steps = [step for step in _whole(row.get("step_ends")) if 0 <= step < len(token_ids)]
    if len(steps) < 2:
        steps = _lines(text, ends)
    return Response(
        sample=row["sample"] if isinstance(row.get("sample"), int) else 0,
        outcome=finite(row.get("outcome")) or 0.0,
        verdict=str(row.get("verdict") or ""),
        reason=str(row.get("reason") or ""),
        finish=str(row.get("finish") or ""),
        probability=finite(row.get("prm_probability")),
        text=text, ends=ends, token_ids=token_ids, rewards=rewards, steps=steps,
    )  # fmt: skip


def utf16_places(text: str, places: Sequence[int]) -> list[int]:
    """The same places counted in UTF-16 units: a character beyond U+FFFF is two."""
    if text.isascii():
        return list(places)
    counts = [0]
    for letter in text:
        counts.append(counts[-1] + (2 if ord(letter) > 0xFFFF else 1))
    return [counts[place] for place in places]


def _lines(text: str, ends: Sequence[int]) -> list[int]:
    """Tokens that hold the end of a line, and the last one."""
    found = [index for index, (start, end) in enumerate(pairwise((0, *ends))) if "\n" in text[start:end]]
    return sorted({*found, len(ends) - 1}) if found else []


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> list[int]:
    """A list of whole numbers; empty where it is anything else."""
    found = _list(value)
    return found if all(isinstance(item, int) and not isinstance(item, bool) for item in found) else []
