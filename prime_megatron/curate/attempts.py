"""Stage `attempts`: n attempts of each model at every problem; the problems that hold, with their difficulty."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prime_megatron.config.curate import AttemptsConfig
from prime_megatron.curate.asking import Requests, graded, question_of_row, user_chat
from prime_megatron.curate.decision import Decision, drop, keep
from prime_megatron.curate.row import CuratedRow
from prime_megatron.curate.statuses import PLANTED, STATUSES, judge, verdict_on
from prime_megatron.generate.run import Answerer
from prime_megatron.generate.sample import ChatOrText, GeneratedSample, format_sample
from prime_megatron.verify import Verifiers


def attempt_prompt(row: CuratedRow, config: AttemptsConfig) -> ChatOrText:
    """What an attempt is asked."""
    return user_chat(config.prompt.replace("{problem}", row.problem)) if row.ability == "math" else row.prompt


def attempt_lines(
    rows: Sequence[CuratedRow], config: AttemptsConfig, answerer: Answerer, verifiers: Verifiers
) -> Iterator[bytes]:
    """One model's graded attempts at rows, as a block keeps them."""
    samples = answerer.answer([question_of_row(row, attempt_prompt(row, config)) for row in rows])
    for sample in graded(rows, samples, verifiers):
        yield format_sample(sample).encode()


class Judge:
    """Decides about rows from the attempts of all models, and counts.

    Args:
        config: of the stage.
        models: their names, in the order of the attempts.
    """

    def __init__(self, config: AttemptsConfig, models: Sequence[str]) -> None:
        self._config, self._models = config, models
        self._statuses: dict[str, Counter[str]] = {model: Counter() for model in models}
        self._requests = Requests()
        self._planted = self._believed = 0

    def decide(self, row: CuratedRow, samples: Sequence[Sequence[GeneratedSample]]) -> Decision:
        """``samples``: n of each model."""
        everyone = [sample for own in samples for sample in own]
        attempts = judge(row, everyone)
        for model, own, first in zip(self._models, samples, range(0, len(everyone), self._config.n), strict=True):
            self._statuses[model].update(attempts.statuses[first : first + len(own)])
        for sample in everyone:
            self._requests.count(sample)
        told = attempts.to_json() | {"models": list(self._models)}
        difficulty = None if attempts.right is None else 1.0 - attempts.right
        judged = dataclasses.replace(row, difficulty=difficulty, curation={**row.curation, "attempts": told})
        why = verdict_on(row, attempts, self._config)
        self._planted += row.solvable is False
        self._believed += why is not None and why[0] == PLANTED
        return keep(judged) if why is None else drop(judged, *why)

    def report(self) -> dict[str, Any]:
        """What the stage's report ends with. `false_solvable`: of the planted problems that have no solution, how
        many the thresholds would have kept."""
        whole = sum(self._statuses.values(), Counter[str]())
        rate = self._believed / self._planted if self._planted else None
        return {
            "statuses": {status: whole[status] for status in STATUSES},
            "statuses_by_model": {
                model: {status: counts[status] for status in STATUSES} for model, counts in self._statuses.items()
            },
            "requests": vars(self._requests),
            "false_solvable": {"planted": self._planted, "kept": self._believed, "rate": rate},
        }
