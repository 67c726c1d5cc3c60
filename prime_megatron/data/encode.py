"""A row of the data as the model reads it, or why it is left out."""

from __future__ import annotations

from enum import StrEnum

from prime_megatron.data.rows import PromptRow, SftRow
from prime_megatron.data.tokenizer import OpenThought, Tokenizer
from prime_megatron.data.told import Telling
from prime_megatron.errors import InputError
from prime_megatron.types import Group, Prompt, Sample


class Skip(StrEnum):
    """Why a row of the data is no item of the stream."""

    too_long = "too_long"
    no_tokens = "no_tokens"
    masked = "masked"
    """Every answer of a supervised row has weight 0."""
    open_thought = "open_thought"
    """The answer would be learned inside a thought that the prompt opens and the answer does not close."""
    long_truth = "long_truth"
    """The prompt with the truth in it is too long for the teacher that reads it."""


def encode_prompt(
    row: PromptRow,
    tokenizer: Tokenizer,
    uid: str,
    draw: int,
    max_prompt_tokens: int,
    telling: Telling | None = None,
) -> Prompt | Skip:
    """A row as the model reads it, or why it is none. telling: how a teacher is told the truth; None: it is not.

    Raises:
        InputError: the row's chat cannot be rendered, by file and row.
    """
    try:
        text, token_ids = tokenizer.encode_chat(row.messages, row.tools)
        told_ids = () if telling is None else telling.encode(row, tokenizer)
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from None
    if not token_ids or len(token_ids) > max_prompt_tokens:
        return Skip.too_long if token_ids else Skip.no_tokens
    if telling is not None and len(told_ids) > len(token_ids) + telling.max_tokens:
        return Skip.long_truth
    return Prompt(
        uid,
        draw,
        tuple(token_ids),
        row.ability,
        row.ground_truth,
        row.data_source,
        text,
        row.extra_info,
        row.other_truths,
        told_ids,
    )


def encode_sft(row: SftRow, tokenizer: Tokenizer, uid: str, draw: int, max_tokens: int) -> Group | Skip:
    """A supervised row as a group of one, or why it is none. Raises as `encode_prompt`."""
    if not row.learned:
        return Skip.masked
    try:
        prompt_ids, response_ids = tokenizer.encode_answer(row.messages, row.tools)
    except OpenThought:
        return Skip.open_thought
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from None
    if not prompt_ids or len(prompt_ids) + len(response_ids) > max_tokens:
        return Skip.too_long if prompt_ids else Skip.no_tokens
    prompt = Prompt(uid, draw, tuple(prompt_ids), "", "")
    zeros = (0.0,) * len(response_ids)
    return Group(prompt, (Sample(tuple(response_ids), zeros, "stop", 0, row.messages[-1].content),))
