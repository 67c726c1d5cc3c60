"""A sample: one response to one prompt, as `prime-megatron generate` writes it and every later stage reads it.

A file of samples is JSON lines, one object a sample. Keys that a sample does not have (token ids of an endpoint that
gives none, log-probs that were not asked for, an outcome before grading) are absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_megatron.data.messages import Message, read_messages
from prime_megatron.errors import InputError

ChatOrText = tuple[Message, ...] | str


@dataclass(frozen=True)
class GeneratedSample:
    """One response."""

    id: str
    """Of the prompt's row."""
    sample: int
    """Index among the responses to the prompt, 0 .. n - 1."""
    prompt: ChatOrText
    """Chat messages or text, as in the row (the system prompt that was added included)."""
    response: str
    truncated: bool
    """Cut at the length limit."""
    prompt_ids: tuple[int, ...] | None = None
    """Token ids that the model read; None: the endpoint gave none."""
    response_ids: tuple[int, ...] | None = None
    """Token ids of the response, the end of sequence included where the model wrote one."""
    logprobs: tuple[float, ...] | None = None
    """Log-prob (nats) of each token of response_ids under the distribution it was drawn from."""
    data_source: str | None = None
    ability: str | None = None
    ground_truth: str | None = None
    outcome: float | None = None
    """Verified reward in [0, 1]; None: not graded."""
    verdict: str | None = None
    """One of ``verify.VERDICTS``."""
    reason: str | None = None
    """Why, in a line for a person."""
    retries: int | None = None
    """Requests that failed before the one that this is the answer to; None: none did."""
    failure: str | None = None
    """Why there is no response: all requests failed, or the server refuses this one. None: there is one."""


def to_json(sample: GeneratedSample) -> dict[str, Any]:
    """The sample as a row, keys in the order of the class, absent ones left out."""
    row: dict[str, Any] = {}
    for key, value in vars(sample).items():
        if value is None:
            continue
        if key == "prompt" and not isinstance(value, str):
            value = [message.for_template() for message in value]
        row[key] = list(value) if isinstance(value, tuple) else value
    return row


def format_sample(sample: GeneratedSample) -> str:
    """One line, newline included; the same sample gives the same bytes."""
    text = json.dumps(to_json(sample), ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair has no UTF-8; a line separator of Unicode would cut the line for some readers.
    if any("\ud800" <= char <= "\udfff" or char in "\u2028\u2029\x85" for char in text):
        text = json.dumps(to_json(sample), allow_nan=False)
    return text + "\n"


def read_samples(path: str | Path) -> list[GeneratedSample]:
    """All samples of a file, in its order.

    Raises:
        InputError: no such file, no rows, a row that is no sample, the same id and sample twice; by file and row.
    """
    samples: list[GeneratedSample] = []
    seen: dict[tuple[str, int], int] = {}
    for number, row in _rows(Path(path)):
        sample = parse_sample(row, f"{path}, row {number}")
        first = seen.setdefault((sample.id, sample.sample), number)
        if first != number:
            raise InputError(
                f"{path}, row {number}: id {sample.id!r} has sample {sample.sample} already in row {first}; "
                "remove one of them"
            )
        samples.append(sample)
    if not samples:
        raise InputError(f"{path}: the file of samples is empty; it needs at least one row")
    return samples


def parse_sample(row: Mapping[str, Any], origin: str) -> GeneratedSample:
    """A row as a sample. Raises InputError that names ``origin`` and the key."""
    return GeneratedSample(
        id=_typed(row, "id", str, origin),
        sample=_whole(row, origin),
        prompt=_prompt(row["prompt"], origin) if "prompt" in row else "",
        response=_typed(row, "response", str, origin),
        truncated=_typed(row, "truncated", bool, origin) if "truncated" in row else False,
        prompt_ids=_list(row, "prompt_ids", int, origin),
        response_ids=_list(row, "response_ids", int, origin),
        logprobs=_list(row, "logprobs", float, origin),
        data_source=_optional(row, "data_source", origin),
        ability=_optional(row, "ability", origin),
        ground_truth=_optional(row, "ground_truth", origin),
        outcome=_outcome(row, origin),
        verdict=_optional(row, "verdict", origin),
        reason=_optional(row, "reason", origin),
        retries=_optional(row, "retries", origin, int),
        failure=_optional(row, "failure", origin),
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            lines: Iterable[bytes] = list(file)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file of samples; name JSON lines as `generate` writes them") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number}: not JSON ({error})".replace("\n", " ")) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: a sample must be a JSON object")
        yield number, row


def _typed(row: Mapping[str, Any], key: str, kind: type, origin: str) -> Any:
    if key not in row:
        raise InputError(f"{origin}: {key} is missing; a sample needs id, sample and response")
    if not isinstance(row[key], kind):
        raise InputError(f"{origin}: {key} must be of type {kind.__name__}, got {type(row[key]).__name__}")
    return row[key]


def _optional(row: Mapping[str, Any], key: str, origin: str, kind: type = str) -> Any:
    return None if row.get(key) is None else _typed(row, key, kind, origin)


def _whole(row: Mapping[str, Any], origin: str) -> int:
    value = _typed(row, "sample", int, origin)
    if isinstance(value, bool) or value < 0:
        raise InputError(f"{origin}: sample must be a whole number from 0, got {value!r}")
    return int(value)


def _outcome(row: Mapping[str, Any], origin: str) -> float | None:
    value = row.get("outcome")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{origin}: outcome must be a number in [0, 1], got {value!r}")
    return float(value)


def _list(row: Mapping[str, Any], key: str, kind: type, origin: str) -> tuple[Any, ...] | None:
    value = row.get(key)
    if value is None:
        return None
    numbers = (int, float) if kind is float else (int,)
    good = isinstance(value, list) and all(
        isinstance(item, numbers) and not isinstance(item, bool) and math.isfinite(item) for item in value
    )
    if not good:
        raise InputError(f"{origin}: {key} must be a list of {'numbers' if kind is float else 'whole numbers'}")
    return tuple(kind(item) for item in value)


def _prompt(value: Any, origin: str) -> ChatOrText:
    if isinstance(value, str):
        return value
    return read_messages(value, "prompt", origin)
