"""A prompt as a teacher reads it that is told the ground truth (prm.teacher.mode rlsd)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prime_megatron.config import TrainConfig
from prime_megatron.config.roles import has_told_teacher
from prime_megatron.config.teacher import TRUTH
from prime_megatron.data.rows import PromptRow
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError


@dataclass(frozen=True)
class Telling:
    """How the truth is told."""

    text: str
    """Stands behind the last user message, {truth} in it for the row's first ground truth."""
    max_tokens: int
    """Most tokens by which a prompt may grow."""

    @classmethod
    def of(cls, config: TrainConfig) -> Telling | None:
        """That of a run; None: no one is told."""
        teacher = config.prm.teacher
        return cls(teacher.truth_text, teacher.max_truth_tokens) if has_told_teacher(config) else None

    def encode(self, row: PromptRow, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Token ids of the row's chat with the truth in it. Raises InputError: it has no user message."""
        places = [index for index, message in enumerate(row.messages) if message.role == "user"]
        if not places:
            raise InputError("has no user message, behind which prm.teacher.truth_text would stand")
        messages = list(row.messages)
        last = messages[places[-1]]
        told = last.content + self.text.replace(TRUTH, row.ground_truth)
        messages[places[-1]] = dataclasses.replace(last, content=told)
        return tuple(tokenizer.encode_chat(messages, row.tools)[1])
