"""What is asked: rows of ours, or any rows with a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prime_megatron.data.messages import Message, read_messages
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.generate.sample import ChatOrText
from prime_megatron.generate.tables import Row, read_table
from prime_megatron.types import Prompt


@dataclass(frozen=True)
class Question:
    """A row to answer."""

    id: str
    """Unique among the questions of a request; names the random streams of its responses."""
    prompt: ChatOrText
    origin: str
    """ "file, row n"."""
    ability: str = ""
    """Which verifier scores its answers; empty: none."""
    ground_truth: str = ""
    other_truths: tuple[str, ...] = ()
    """Further ground truths; the best verdict of all counts."""
    data_source: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict, hash=False)


def read_questions(paths: Sequence[str], system_prompt: str | None) -> list[Question]:
    """Questions of files with a `prompt` (chat messages or text) in every row, file after file.

    A row's `id` is taken where it has one; else it is its place among all rows, from 0. Ground truths are read in the
    schema of Eurus-2-RL-Data (`reward_model.ground_truth`) or as `ground_truth`.

    Args:
        paths: see ``tables``.
        system_prompt: put before chats without a system message; a prompt of text becomes a chat then.

    Raises:
        InputError: a file, a row or a key that cannot be used; an id that two rows have.
    """
    questions: list[Question] = []
    for path in paths:
        for origin, row in read_table(Path(path)):
            questions.append(question_of(row, origin, len(questions), system_prompt))
    check_ids(questions)
    return questions


def check_ids(questions: Sequence[Question]) -> None:
    """Raises InputError where two questions have one id."""
    first: dict[str, str] = {}
    for question in questions:
        if question.id in first:
            raise InputError(f"{question.origin}: id {question.id!r} is that of {first[question.id]}; make ids unique")
        first[question.id] = question.origin


def stream_of(name: str) -> int:
    """The random streams' number of a question, from its name: below 2**63."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def encode_question(question: Question, tokenizer: Tokenizer, name: str) -> Prompt:
    """The question as the model reads it; ``name`` names its random streams.

    Raises:
        InputError: the tokenizer has no template for a chat of several messages, or it refuses the chat; by row.
    """
    try:
        if isinstance(question.prompt, str):
            text = question.prompt
            token_ids = tokenizer.encode_text(text)
        else:
            text, token_ids = tokenizer.encode_chat(question.prompt)
    except InputError as error:
        raise InputError(f"{question.origin}: {error}") from None
    if not token_ids:
        raise InputError(f"{question.origin}: the prompt has no tokens")
    return Prompt(
        uid=question.id,
        draw=stream_of(name),
        token_ids=tuple(token_ids),
        ability=question.ability,
        ground_truth=question.ground_truth,
        data_source=question.data_source,
        text=text,
        extra_info=question.extra_info,
        other_truths=question.other_truths,
    )


def digest_of(questions: Sequence[Question]) -> str:
    """sha256 of everything that is asked and what answers are held against."""
    digest = hashlib.sha256()
    for one in questions:
        prompt = one.prompt if isinstance(one.prompt, str) else [m.for_template() for m in one.prompt]
        parts = [
            one.id,
            prompt,
            one.ability,
            [one.ground_truth, *one.other_truths],
            one.data_source,
            dict(one.extra_info),
        ]
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def question_of(row: Row, origin: str, place: int, system_prompt: str | None) -> Question:
    """A row as a question; ``place``: its id where it has none. Raises InputError as `read_questions`."""
    if row.get("prompt") is None:
        raise InputError(f"{origin}: prompt is missing; the row has {', '.join(row) or 'no keys'}")
    prompt = _prompt(row["prompt"], origin)
    if system_prompt is not None:
        chat = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        prompt = chat if chat[0].role == "system" else (Message("system", system_prompt), *chat)
    reward = row.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else row.get("ground_truth")
    listed = truth if isinstance(truth, list) and truth else [truth]
    truths = tuple(_text(one, "ground_truth", origin) for one in listed)
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, dict):
        raise InputError(f"{origin}: extra_info must be an object")
    return Question(
        id=_id(row, origin, place),
        prompt=prompt,
        origin=origin,
        ability=_text(row.get("ability"), "ability", origin),
        ground_truth=truths[0],
        other_truths=truths[1:],
        data_source=_text(row.get("data_source"), "data_source", origin),
        extra_info=json.loads(json.dumps(extra or {}, default=str)),
    )


def _id(row: Row, origin: str, place: int) -> str:
    value = row.get("id")
    if value is None:
        return str(place)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InputError(f"{origin}: id must be text or a whole number, got {value!r}")
    return str(value)


def _text(value: Any, key: str, origin: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{origin}: {key} must be text, got {type(value).__name__}")
    return value


def _prompt(value: Any, origin: str) -> ChatOrText:
    if isinstance(value, str):
        if not value:
            raise InputError(f"{origin}: the prompt is empty")
        return value
    if not isinstance(value, list):
        raise InputError(f"{origin}: prompt must be text or a list of messages")
    messages = read_messages(value, "prompt", origin)
    if messages[-1].role not in ("user", "tool"):
        raise InputError(f"{origin}: prompt ends with a message of {messages[-1].role}; the last must be user's")
    return messages
