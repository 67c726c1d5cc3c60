"""Given responses: what the PRM scores and learns from, read from JSON lines and turned into tokens.

A row is a sample of `generate`, or any object with `prompt` (chat messages, or the text that the model reads),
`response` and for training `outcome` or `score` (0 to 1). Where the row has `prompt_ids` and `response_ids` they stand;
elsewhere the tokenizer and its chat template make them. `steps`, a list of texts, may stand in place of `response`: it
says where the steps end, which the step delimiter says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prime_megatron.data.encode import Skip
from prime_megatron.data.messages import Message
from prime_megatron.data.order import EpochOrder
from prime_megatron.data.stream import RowStream
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.generate.sample import GeneratedSample, parse_sample
from prime_megatron.generate.tables import read_table
from prime_megatron.types import Group, Prompt, Sample

STEP_JOINT = "\n\n"
"""Stands between the texts of `steps`."""


@dataclass(frozen=True)
class Response:
    """One row."""

    sample: GeneratedSample
    steps: tuple[str, ...] | None
    """Texts of the steps, where the row gives them."""
    row: Mapping[str, Any]
    """As it was read."""
    origin: str
    """ "file, row n"."""


@dataclass(frozen=True)
class Encoded:
    """A response as the model reads it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    step_ends: tuple[int, ...]
    """Index among the response tokens of the last token of each step, growing; steps that share their last token (an
    empty one after another) repeat it."""


def read_responses(path: str, *, labelled: bool) -> list[Response]:
    """All rows of a file, in its order.

    Raises:
        InputError: a file that is missing or empty, a row that is no response, or has no outcome where ``labelled``; by
            file and row.
    """
    return [_parse(row, origin, labelled) for origin, row in read_table(Path(path))]


def _parse(row: dict[str, Any], origin: str, labelled: bool) -> Response:
    steps = row.get("steps")
    if steps is not None and not (isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps)):
        raise InputError(f"{origin}: steps must be a list of texts, at least one")
    given = {"id": origin, "sample": 0} | row
    if steps is not None:
        given["response"] = STEP_JOINT.join(steps)
    if given.get("outcome", None) is None and "score" in row:
        given["outcome"] = row["score"]
    sample = parse_sample(given, origin)
    if sample.prompt_ids is None and not sample.prompt:
        raise InputError(f"{origin}: prompt is missing; a response needs prompt or prompt_ids")
    if labelled and sample.outcome is None:
        raise InputError(f"{origin}: outcome is missing; a labelled response needs it, from 0 to 1")
    return Response(sample, None if steps is None else tuple(steps), row, origin)


class Encoder:
    """Turns responses into tokens.

    Args:
        tokenizer: of the model that reads them.
        vocab: its vocabulary; given ids must be below it.
        max_tokens: longest prompt and response together.
        step_end_table_V: bool [V], tokens that close a step; None where no one asks for steps.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, max_tokens: int, step_end_table_V: Tensor | None) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self.max_tokens = max_tokens
        self._closes: frozenset[int] = frozenset(
            step_end_table_V.nonzero().flatten().tolist() if step_end_table_V is not None else ()
        )

    def encode(self, response: Response) -> Encoded | None:
        """The tokens; None for a response of more than max_tokens, or without a token in prompt or response.

        Raises:
            InputError: ids beyond the vocabulary, or a chat that the template refuses; by file and row.
        """
        try:
            encoded = self._encode(response)
        except InputError as error:
            raise InputError(f"{response.origin}: {error}") from None
        size = len(encoded.prompt_ids) + len(encoded.response_ids)
        whole = encoded.prompt_ids and encoded.response_ids and size <= self.max_tokens
        return encoded if whole else None

    def _encode(self, response: Response) -> Encoded:
        sample, tokenizer = response.sample, self._tokenizer
        if response.steps is not None:
            return Encoded(self._prompt_ids(sample), *self._encode_steps(response.steps))
        if sample.prompt_ids is not None and sample.response_ids is not None:
            prompt_ids, response_ids = sample.prompt_ids, sample.response_ids
            if any(not 0 <= token < self._vocab for token in (*prompt_ids, *response_ids)):
                raise InputError(f"a token id is not in the model's vocabulary of {self._vocab}; leave the ids out")
        elif sample.truncated or isinstance(sample.prompt, str):
            end = () if sample.truncated else (tokenizer.eos_token_ids[0],)
            prompt_ids, response_ids = self._prompt_ids(sample), (*tokenizer.encode(sample.response), *end)
        else:
            answered = (*sample.prompt, Message("assistant", sample.response))
            prompt_ids, response_ids = (tuple(ids) for ids in tokenizer.encode_answer(answered))
        return Encoded(prompt_ids, response_ids, self._step_ends(response_ids))

    def _prompt_ids(self, sample: GeneratedSample) -> tuple[int, ...]:
        """Of a chat by the template, of a text as it stands."""
        if isinstance(sample.prompt, str):
            return tuple(self._tokenizer.encode_text(sample.prompt))
        return tuple(self._tokenizer.encode_chat(sample.prompt)[1])

    def _step_ends(self, response_ids: Sequence[int]) -> tuple[int, ...]:
        """Where the delimiter closes a step; the last token always closes one."""
        last = len(response_ids) - 1
        return tuple(index for index, token in enumerate(response_ids) if token in self._closes or index == last)

    def _encode_steps(self, steps: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(token ids of the joined text, last token of each step); the text between two steps belongs to the first."""
        ids, offsets = self._tokenizer.encode_with_offsets(STEP_JOINT.join(steps))
        ends, begin, token = [], 0, -1
        for number, step in enumerate(steps, start=1):
            begin += len(step) + len(STEP_JOINT)  # where the next step begins
            while token + 1 < len(offsets) and (number == len(steps) or offsets[token + 1] < begin):
                token += 1
            ends.append(max(token, 0))
        return tuple(ids), tuple(ends)


@dataclass(frozen=True)
class Siblings:
    """Responses to one prompt."""

    responses: tuple[Response, ...]

    @property
    def origin(self) -> str:
        """File and row of the first."""
        return self.responses[0].origin


def sibling_groups(responses: Sequence[Response], size: int) -> list[Siblings]:
    """Responses to one prompt together, at most ``size`` in a group; prompts in the order of their first response.

    A prompt with more responses makes several groups that differ by at most one in size, dealt in turn.
    """
    by_prompt: dict[object, list[Response]] = {}
    for response in responses:
        sample = response.sample
        by_prompt.setdefault(sample.prompt or sample.prompt_ids, []).append(response)
    groups: list[Siblings] = []
    for siblings in by_prompt.values():
        count = -(-len(siblings) // size)
        groups += [Siblings(tuple(siblings[part::count])) for part in range(count)]
    return groups


def encode_group(encoder: Encoder, siblings: Siblings, uid: str, draw: int) -> Group | None:
    """Siblings as a group of the trainer's; those that are too long are left out, None where no one stays."""
    kept: list[Sample] = []
    prompt: Prompt | None = None
    for response in siblings.responses:
        encoded = encoder.encode(response)
        if encoded is None:
            continue
        source, ability = response.sample.data_source or "", response.sample.ability or ""
        prompt = prompt or Prompt(uid, draw, encoded.prompt_ids, ability, "", source)
        kept.append(as_sample(encoded, response))
    return None if prompt is None else Group(prompt, tuple(kept))


def as_sample(encoded: Encoded, response: Response) -> Sample:
    """A response as the trainer's sample; its log-probs are not known and 0."""
    return Sample(
        token_ids=encoded.response_ids,
        logprobs=(0.0,) * len(encoded.response_ids),
        finish="length" if response.sample.truncated else "stop",
        version=0,
        outcome=response.sample.outcome or 0.0,
    )


class ResponseStream(RowStream[Siblings, Group]):
    """Groups of labelled responses, shuffled per epoch; a group whose responses are all too long is skipped."""

    def __init__(self, groups: Sequence[Siblings], encoder: Encoder, *, seed: int) -> None:
        super().__init__(
            groups,
            lambda siblings, uid, draw: encode_group(encoder, siblings, uid, draw) or Skip.too_long,
            content=lambda siblings: [response.row for response in siblings.responses],
            order=EpochOrder(len(groups), seed=seed, shuffle=True),
            limit=f"data.max_tokens {encoder.max_tokens}",
        )


def read_held_out(paths: Sequence[str], encoder: Encoder) -> list[Group]:
    """All siblings of a prompt together, in the order of the files; responses that are too long are left out.

    Raises:
        InputError: a file or a row that cannot be used.
    """
    rows = [row for path in paths for row in read_responses(path, labelled=True)]
    groups = [
        encode_group(encoder, siblings, f"held-out-{index}", index)
        for index, siblings in enumerate(sibling_groups(rows, len(rows)))
    ]
    return [group for group in groups if group is not None]
