"""A request: questions in blocks, each answered, committed whole, and never asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prime_megatron.generate.blocks import Blocks
from prime_megatron.generate.questions import Question
from prime_megatron.generate.sample import GeneratedSample


class Answerer(Protocol):
    """An engine or an endpoint."""

    def answer(self, questions: Sequence[Question]) -> list[GeneratedSample]:
        """All samples of all the questions, by question and sample."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    num_blocks: int
    done: int
    """Blocks that are answered."""
    left_s: float | None
    """Expected time that is left, from the blocks of this attempt; None before the first."""


def answer_blocks(
    blocks: Blocks, by_block: Sequence[Sequence[Question]], answerer: Answerer, tell: Callable[[Progress], None]
) -> None:
    """Answer every block that is not answered yet. ``tell`` hears of the start and of every block."""
    done = sum(blocks.has(index) for index in range(len(by_block)))
    start_s, before = time.monotonic(), done
    tell(Progress(len(by_block), done, None))
    for index, questions in enumerate(by_block):
        if blocks.has(index):
            continue
        blocks.commit(index, answerer.answer(questions))
        done += 1
        each_s = (time.monotonic() - start_s) / (done - before)
        tell(Progress(len(by_block), done, each_s * (len(by_block) - done)))


def in_blocks(questions: Sequence[Question], samples_per_question: int, block: int) -> list[Sequence[Question]]:
    """The questions cut so that a block has at most ``block`` samples (at least one question)."""
    size = questions_per_block(samples_per_question, block)
    return [questions[first : first + size] for first in range(0, len(questions), size)]


def questions_per_block(samples_per_question: int, block: int) -> int:
    """Questions of a block of ``block`` samples."""
    return max(1, block // samples_per_question)
