"""Responses with the PRM's rewards, as `prime-megatron score` writes them, read as the candidates of their prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prime_megatron.errors import InputError
from prime_megatron.evaluate.best_of_n import Candidates
from prime_megatron.evaluate.votes import vote_of
from prime_megatron.generate.sample import parse_sample
from prime_megatron.generate.tables import read_table


@dataclass(frozen=True)
class ScoredResponse:
    """One row."""

    id: str
    """Of the prompt."""
    outcome: float
    vote: str | None
    """The answer in one spelling; None: it gives none."""
    logit: float
    """Of the PRM's probability: `prm_score`; the sum of the process rewards where a row has none."""
    score: float
    """What the choice goes by."""


def _mean(rewards: Sequence[float], steps: Sequence[float]) -> float:
    return sum(rewards) / len(rewards)


SCORES: Mapping[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "total": lambda rewards, steps: sum(rewards),
    "mean": _mean,
    "min-step": lambda rewards, steps: min(steps),
}
"""What one may choose by: (process_rewards, step_rewards) to a score."""


def read_scored(path: str, by: str, ability: str) -> list[ScoredResponse]:
    """All rows of a file.

    by: a key of SCORES; ability: of rows that name none; it says how an answer is found.

    Raises:
        InputError: a row without outcome or rewards; a prompt's rows with one sample twice.
    """
    found: list[ScoredResponse] = []
    seen: set[tuple[str, int]] = set()
    for origin, row in read_table(Path(path)):
        sample = parse_sample(row, origin)
        if (sample.id, sample.sample) in seen:
            raise InputError(f"{origin}: id {sample.id!r} has sample {sample.sample} twice; remove one of them")
        seen.add((sample.id, sample.sample))
        if sample.outcome is None:
            raise InputError(f"{origin}: outcome is missing; grade the samples first (generate --grade)")
        rewards, steps = (_numbers(row, key, origin) for key in ("process_rewards", "step_rewards"))
        logit = row.get("prm_score", sum(rewards))
        if not isinstance(logit, (int, float)) or not math.isfinite(logit):
            raise InputError(f"{origin}: prm_score must be a finite number")
        vote = vote_of(sample.ability or ability, sample.response)
        found.append(ScoredResponse(sample.id, sample.outcome, vote, float(logit), SCORES[by](rewards, steps)))
    return found


def candidates(responses: Sequence[ScoredResponse], path: str) -> tuple[list[Candidates], int]:
    """(the prompts, how many samples each has: the fewest of any; a prompt's further ones are left out).

    Raises:
        InputError: a prompt with a single sample, among which there is nothing to choose.
    """
    by_prompt: dict[str, list[ScoredResponse]] = {}
    for response in responses:
        by_prompt.setdefault(response.id, []).append(response)
    least = min(len(samples) for samples in by_prompt.values())
    if least < 2:
        alone = next(id_ for id_, samples in by_prompt.items() if len(samples) == 1)
        raise InputError(f"{path}: id {alone!r} has one sample; a choice needs at least 2 of every prompt")
    return [_candidates(samples[:least]) for samples in by_prompt.values()], least


def _candidates(samples: Sequence[ScoredResponse]) -> Candidates:
    spellings = list(dict.fromkeys(sample.vote for sample in samples if sample.vote is not None))
    logits = np.array([sample.logit for sample in samples])
    return Candidates(
        outcome=np.array([sample.outcome for sample in samples]),
        score=np.array([sample.score for sample in samples]),
        weight=np.exp(-np.logaddexp(0.0, -logits)),
        answer=np.array([-1 if sample.vote is None else spellings.index(sample.vote) for sample in samples]),
    )


def _numbers(row: Mapping[str, Any], key: str, origin: str) -> list[float]:
    values = row.get(key, None)
    if not isinstance(values, list) or not values:
        raise InputError(f"{origin}: {key} is missing; score the samples first (prime-megatron score)")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise InputError(f"{origin}: {key} must be a list of finite numbers")
    return [float(value) for value in values]
