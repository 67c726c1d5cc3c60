"""Stage `sft`: supervised rows whose answers are steps with named actions, checked for form and for being right."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prime_megatron.config.curate import SftDataConfig
from prime_megatron.curate.action_prompt import action_prompt
from prime_megatron.curate.asking import Requests, graded, question_of_row
from prime_megatron.curate.decision import Decision, drop
from prime_megatron.curate.row import CuratedRow, format_line, to_json
from prime_megatron.data.actions import form_problem
from prime_megatron.data.messages import Message
from prime_megatron.generate.run import Answerer
from prime_megatron.generate.sample import GeneratedSample, format_sample
from prime_megatron.verify import Verifiers
from prime_megatron.verify.answer import CORRECT

FAILED, CUT, WRONG = "failed", "cut", "wrong"
_HOW_FAR = {FAILED: 0, CUT: 1, WRONG: 3}
"""How far an answer came before it was dropped; one that breaks the form stands between."""


def asked_chat(row: CuratedRow) -> tuple[Message, ...]:
    """The row's chat under the prompt of actions; a system message of its own comes after it."""
    return _under(action_prompt(), row.prompt)


def answer_lines(rows: Sequence[CuratedRow], answerer: Answerer, verifiers: Verifiers) -> Iterator[bytes]:
    """Graded answers to rows, as a block keeps them."""
    samples = answerer.answer([question_of_row(row, asked_chat(row)) for row in rows])
    for sample in graded(rows, samples, verifiers):
        yield format_sample(sample).encode()


class AnswerJudge:
    """Decides which answer of a row is learned from, and counts. ``config``: of the stage."""

    def __init__(self, config: SftDataConfig) -> None:
        self._config = config
        self._requests = Requests()
        self._answers: Counter[str] = Counter()

    def decide(self, row: CuratedRow, samples: Sequence[GeneratedSample]) -> Decision:
        """The first good answer makes the row; without one the best of them says why it is dropped."""
        problems: list[tuple[str, str]] = []
        chosen: GeneratedSample | None = None
        for sample in samples:
            self._requests.count(sample)
            problem = self._problem(row, sample)
            self._answers["good" if problem is None else problem[0]] += 1
            if problem is not None:
                problems.append(problem)
            elif chosen is None:
                chosen = sample
        if chosen is not None:
            return Decision(format_line(self._supervised(row, chosen)))
        # The further an answer came, the more it tells.
        return drop(row, *max(problems, key=lambda problem: _HOW_FAR.get(problem[0], 2)))

    def _problem(self, row: CuratedRow, sample: GeneratedSample) -> tuple[str, str] | None:
        if sample.failure is not None:
            return FAILED, sample.failure
        if sample.truncated:
            return CUT, "cut at the length limit"
        problem = form_problem(sample.response)
        if problem is not None and self._config.check == "full":
            return problem
        known = row.ground_truth is not None and self._config.truth == "reject"
        return (WRONG, f"{sample.verdict}: {sample.reason}") if known and sample.verdict != CORRECT else None

    def _supervised(self, row: CuratedRow, sample: GeneratedSample) -> dict[str, Any]:
        """A row of supervised fine-tuning: `messages` in place of `prompt`."""
        chat = asked_chat(row) if self._config.system is None else _under(self._config.system, row.prompt)
        messages = [message.for_template() for message in (*chat, Message("assistant", sample.response))]
        columns = to_json(dataclasses.replace(row, curation={**row.curation, "answer": {"sample": sample.sample}}))
        del columns["prompt"]
        return {"id": row.id, "messages": messages} | columns

    def report(self) -> dict[str, Any]:
        """What the stage's report ends with."""
        return {"statuses": dict(sorted(self._answers.items())), "requests": vars(self._requests)}


def _under(system: str, chat: Sequence[Message]) -> tuple[Message, ...]:
    """A chat below a system text, which joins the chat's own."""
    if chat[0].role != "system":
        return (Message("system", system), *chat) if system else tuple(chat)
    joined = "\n\n".join(part for part in (system, chat[0].content) if part)
    return (Message("system", joined), *chat[1:])
