"""How stages ask models: rows as questions, samples graded by the rows' truths, replies read in bounded rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prime_megatron.config.curate import AskConfig
from prime_megatron.curate.row import CuratedRow
from prime_megatron.data.messages import Message
from prime_megatron.generate.questions import Question
from prime_megatron.generate.run import Answerer
from prime_megatron.generate.sample import ChatOrText, GeneratedSample
from prime_megatron.verify import Answer, Verifiers


@dataclass(frozen=True)
class Draws:
    """How many responses, and how they are drawn."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


AnswererOf = Callable[[Draws], Answerer]
"""A model, to be asked in this way."""


def draws_of(config: AskConfig, n: int) -> Draws:
    """The draws that a stage's settings ask for."""
    return Draws(n, config.temperature, config.top_p, config.max_tokens, config.seed)


def question_of_row(row: CuratedRow, prompt: ChatOrText) -> Question:
    """What a model is asked about a row; it is not graded on the way."""
    return Question(id=row.id, prompt=prompt, origin=f"row {row.id}", data_source=row.data_source)


def user_chat(text: str) -> tuple[Message, ...]:
    """One user message."""
    return (Message("user", text),)


def graded(
    rows: Sequence[CuratedRow], samples: Sequence[GeneratedSample], verifiers: Verifiers
) -> list[GeneratedSample]:
    """The samples with outcome and verdict, where their row has a ground truth and they have a response.

    Raises:
        InputError: an ability that cannot be scored on this machine.
    """
    by_id = {row.id: row for row in rows}
    futures = []
    for sample in samples:
        row = by_id[sample.id]
        judged = row.ground_truth is not None and sample.failure is None
        answer = Answer(row.ability, sample.response, row.ground_truth or "", data_source=row.data_source)
        futures.append(verifiers.submit(answer) if judged else None)
    verdicts = [None if future is None else future.result() for future in futures]
    return [
        sample
        if verdict is None
        else dataclasses.replace(sample, outcome=verdict.score, verdict=verdict.verdict, reason=verdict.reason)
        for sample, verdict in zip(samples, verdicts, strict=True)
    ]


@dataclass
class Requests:
    """What was asked, and what failed."""

    asked: int = 0
    failed: int = 0
    retries: int = 0

    def count(self, sample: GeneratedSample) -> None:
        """One sample more."""
        self.asked += 1
        self.failed += sample.failure is not None
        self.retries += sample.retries or 0


@dataclass(frozen=True)
class Asked:
    """What asking about one row came to."""

    reply: Any
    """What was read; None: nothing could be."""
    rounds: int
    problem: str = ""
    """What was wrong with the last reply."""
    failed: int = 0
    """Requests that did not come back."""
    retries: int = 0


def ask_rounds(
    prompts: Mapping[str, str], name: str, read: Callable[[str, str], Any], answerers: Sequence[Answerer]
) -> dict[str, Asked]:
    """Ask about each row until a reply can be read, once by each of the answerers at most.

    Args:
        prompts: row's id -> what is asked.
        name: of the pass; names the random streams.
        read: (row's id, reply) -> what it says; ValueError with what is wrong.
        answerers: one a round.
    """
    found: dict[str, Asked] = {one: Asked(None, 0) for one in prompts}
    left = list(prompts)
    for number, answerer in enumerate(answerers, start=1):
        questions = [Question(f"{one}/{name}/{number}", user_chat(prompts[one]), f"row {one}") for one in left]
        samples = answerer.answer(questions) if questions else []
        for one, sample in zip(left, samples, strict=True):
            failed = found[one].failed + (sample.failure is not None)
            retries = found[one].retries + (sample.retries or 0)
            try:
                if sample.failure is not None:
                    raise ValueError(f"no reply: {sample.failure}")
                found[one] = Asked(read(one, sample.response), number, "", failed, retries)
            except ValueError as error:
                found[one] = Asked(None, number, " ".join(str(error).split()), failed, retries)
        left = [one for one in left if found[one].reply is None]
    return found
