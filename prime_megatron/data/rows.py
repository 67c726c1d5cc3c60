"""Rows of JSONL and parquet files, checked.

Training prompts follow the schema of Eurus-2-RL-Data: data_source, prompt (chat messages), ability,
reward_model {style, ground_truth}, extra_info. Supervised rows have `messages` (the last one the assistant's) or
`prompt` (text or messages) and `response`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prime_megatron.data.json_line import lines_of, parse_line
from prime_megatron.errors import InputError

ROLES = ("system", "user", "assistant")
PARQUET_ROWS_AT_ONCE = 1024

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Message:
    """A turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptRow:
    """A prompt with what its answer is checked against."""

    messages: tuple[Message, ...]
    ability: str
    ground_truth: str
    data_source: str
    origin: str
    """ "file, row n", counted from 1 (the line of a JSONL file)."""
    extra_info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """JSON values; what parquet holds beside them (dates, bytes) is text."""


@dataclass(frozen=True)
class SftRow:
    """A chat whose last message, the assistant's, is what to learn."""

    messages: tuple[Message, ...]
    origin: str


def read_prompt_rows(paths: Sequence[str], system_prompt: str | None = None) -> list[PromptRow]:
    """Training or held-out prompts, file after file.

    Args:
        paths: .jsonl or .parquet files.
        system_prompt: put before rows that have no system message of their own.

    Raises:
        InputError: a file that is missing, empty or of an unknown kind; a row that breaks the schema, by file and
            row.
    """

    def parse(row: dict[str, Any], origin: str) -> PromptRow:
        messages = _messages(_need(row, "prompt", origin), "prompt", origin)
        if messages[-1].role != "user":
            raise InputError(f"{origin}: prompt ends with a message of {messages[-1].role}; the last must be user's")
        if system_prompt is not None and messages[0].role != "system":
            messages = (Message("system", system_prompt), *messages)
        reward = _need(row, "reward_model", origin)
        if not isinstance(reward, dict):
            raise InputError(f"{origin}: reward_model must be an object with ground_truth")
        truth = reward.get("ground_truth")
        if truth is None or truth == "":
            raise InputError(f"{origin}: no ground truth; set reward_model.ground_truth")
        if not isinstance(truth, str):
            raise InputError(f"{origin}: reward_model.ground_truth must be text, got {_kind(truth)}; quote it")
        source = row.get("data_source")
        if source is not None and not isinstance(source, str):
            raise InputError(f"{origin}: data_source must be text, got {_kind(source)}")
        extra = row.get("extra_info")
        if extra is not None and not isinstance(extra, dict):
            raise InputError(f"{origin}: extra_info must be an object, got {_kind(extra)}")
        return PromptRow(
            messages, _text(row, "ability", origin), truth, source or "", origin, _json_values(extra or {})
        )

    return _read_all(paths, parse)


def read_sft_rows(paths: Sequence[str]) -> list[SftRow]:
    """Supervised rows, file after file. Raises InputError as `read_prompt_rows`."""

    def parse(row: dict[str, Any], origin: str) -> SftRow:
        if row.get("messages") is not None:
            messages = _messages(row["messages"], "messages", origin)
        elif row.get("prompt") is not None:
            prompt = row["prompt"]
            before = (Message("user", prompt),) if isinstance(prompt, str) else _messages(prompt, "prompt", origin)
            messages = (*before, Message("assistant", _text(row, "response", origin)))
        else:
            raise InputError(f"{origin}: neither messages nor prompt and response; a supervised row needs one of them")
        if messages[-1].role != "assistant" or len(messages) < 2:
            raise InputError(f"{origin}: the last message must be the assistant's, after at least one other")
        return SftRow(messages, origin)

    return _read_all(paths, parse)


def iterate(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a .jsonl or .parquet file, without holding the whole file.

    Raises:
        InputError: missing file, unknown kind, a line that is not a JSON object, a damaged parquet file.
    """
    kind = Path(path).suffix
    if kind not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: unknown kind of data file; use .jsonl or .parquet")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such data file; check data.train and data.eval")
    yield from (_iterate_jsonl if kind == ".jsonl" else _iterate_parquet)(path)


def _iterate_jsonl(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in lines_of(file, path):
            row = parse_line(line, f"{path}, row {number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number}: a row must be a JSON object, got {_kind(row)}")
            yield number, row


def _iterate_parquet(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa  # only parquet pays for its import
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = {"data_source", "prompt", "ability", "reward_model", "messages", "response", "extra_info"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _read_all(paths: Sequence[str], parse: Callable[[dict[str, Any], str], Parsed]) -> list[Parsed]:
    rows: list[Parsed] = []
    for path in paths:
        before = len(rows)
        for number, row in iterate(path):
            rows.append(parse(row, f"{path}, row {number}"))
        if len(rows) == before:
            raise InputError(f"{path}: the data file is empty; it needs at least one row")
    return rows


def _messages(value: Any, key: str, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InputError(f"{origin}: {key} must be a list of chat messages, got {_kind(value)}")
    if not value:
        raise InputError(f"{origin}: {key} has no messages")
    messages = []
    for index, item in enumerate(value):
        where = f"{origin}: {key}[{index}]"
        if not isinstance(item, dict):
            raise InputError(f"{where} must be an object with role and content, got {_kind(item)}")
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            raise InputError(f"{where} has the unknown role {role!r}; use {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"{where}: content must be text, got {_kind(content)}")
        if role == "system" and index:
            raise InputError(f"{where}: a system message must come first")
        messages.append(Message(role, content))
    return tuple(messages)


def _need(row: dict[str, Any], key: str, origin: str) -> Any:
    if row.get(key) is None:
        raise InputError(f"{origin}: {key} is missing; the row has {', '.join(row) or 'no keys'}")
    return row[key]


def _text(row: dict[str, Any], key: str, origin: str) -> str:
    value = _need(row, key, origin)
    if not isinstance(value, str) or not value:
        raise InputError(f"{origin}: {key} must be text that is not empty, got {_kind(value)}")
    return value


def _json_values(value: Any) -> Any:
    """The value with all that JSON does not have turned into text."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item) for item in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text" if value else "empty text"
    return names.get(type(value), type(value).__name__)
