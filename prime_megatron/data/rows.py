"""Rows of data files, checked.

Training prompts follow the schema of Eurus-2-RL-Data: data_source, prompt (text or chat messages), ability,
reward_model {style, ground_truth}, extra_info. Supervised rows have `messages` (the last one the assistant's) or
`prompt` (text or messages) and `response`. Both may have `system` (text before the chat) and `tools`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prime_megatron.data.files import data_files, iterate, unused_columns
from prime_megatron.data.messages import Message, kind_of, read_messages, read_tools
from prime_megatron.errors import InputError

IDS = ("id", "uid")
PROMPT_COLUMNS = (
    "data_source",
    "prompt",
    "ability",
    "reward_model",
    "extra_info",
    "system",
    "tools",
    "difficulty",
    *IDS,
)
SFT_COLUMNS = ("messages", "prompt", "response", "system", "tools", *IDS)

Parsed = TypeVar("Parsed")
Parse = Callable[[dict[str, Any], str, Callable[[str], None]], Iterable[Parsed]]
"""(row, "file, row n", told of fields that nothing reads) to what the row holds."""


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
    other_truths: tuple[str, ...] = ()
    """Further ground truths: an answer that equals any of them is right."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """For the chat template."""
    difficulty: float | None = None
    """Share of earlier attempts that were wrong, 0 to 1, as `curate attempts` finds it; None: not known."""

    @property
    def truths(self) -> tuple[str, ...]:
        """All ground truths."""
        return (self.ground_truth, *self.other_truths)


@dataclass(frozen=True)
class SftRow:
    """A chat whose last message, the assistant's, is what to learn."""

    messages: tuple[Message, ...]
    origin: str
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    learned: bool = True
    """False: every answer of the row has weight 0."""


class Remarks:
    """What reading found and no error is: each kind once a file, with its number of rows and the first of them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, int]] = {}
        self._ids: dict[str, str] = {}

    def add(self, path: str, number: int, text: str) -> None:
        """One more row (or, with number 0, the file itself) of which `text` is true."""
        count, first = self._found.get((path, text), (0, number))
        self._found[path, text] = (count + 1, first)

    def see_id(self, path: str, number: int, row: Mapping[str, Any]) -> None:
        """Note a row's id, and that it is not the first with it."""
        value = next((row[name] for name in IDS if row.get(name) is not None), None)
        if value is None:
            return
        first = self._ids.setdefault(str(value), f"{path}, row {number}")
        if first != f"{path}, row {number}":
            self.add(path, number, "an id that an earlier row has, too")

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{path}: {text}" + (f" ({count} rows, the first is row {first})" if first else "")
            for (path, text), (count, first) in self._found.items()
        ]


def read_prompt_rows(
    paths: Sequence[str], system_prompt: str | None = None, remarks: Remarks | None = None
) -> list[PromptRow]:
    """All of `prompt_rows`."""
    return list(prompt_rows(paths, system_prompt, remarks))


def prompt_rows(
    paths: Sequence[str], system_prompt: str | None = None, remarks: Remarks | None = None
) -> Iterator[PromptRow]:
    """Training or held-out prompts, file after file, read as they are asked for.

    Args:
        paths: data files, folders of them, patterns.
        system_prompt: put before rows that have no system message of their own.
        remarks: told of fields that nothing reads, and of ids that stand twice.

    Raises:
        InputError: a file that is missing, empty or of an unknown kind; a row that breaks the schema, by file and
            row.
    """

    def parse(row: dict[str, Any], origin: str, unused: Callable[[str], None]) -> Iterable[PromptRow]:
        messages = _with_system(_chat(_need(row, "prompt", origin), "prompt", origin, unused), row, origin)
        if messages[-1].role not in ("user", "tool"):
            raise InputError(f"{origin}: prompt ends with a message of {messages[-1].role}; the last must be user's")
        if system_prompt is not None and messages[0].role != "system":
            messages = (Message("system", system_prompt), *messages)
        reward = _need(row, "reward_model", origin)
        if not isinstance(reward, dict):
            raise InputError(f"{origin}: reward_model must be an object with ground_truth")
        for name in reward.keys() - {"style", "ground_truth"}:
            unused(f"reward_model.{name}")
        truth, *others = _truths(reward.get("ground_truth"), origin)
        source = row.get("data_source")
        if source is not None and not isinstance(source, str):
            raise InputError(f"{origin}: data_source must be text, got {kind_of(source)}")
        extra = row.get("extra_info")
        if extra is not None and not isinstance(extra, dict):
            raise InputError(f"{origin}: extra_info must be an object, got {kind_of(extra)}")
        ability = _text(row, "ability", origin)
        tools = read_tools(row["tools"], origin) if row.get("tools") else ()
        extra = _json_values(extra or {})
        yield PromptRow(
            messages, ability, truth, source or "", origin, extra, tuple(others), tools, _difficulty(row, origin)
        )

    return _each(paths, parse, PROMPT_COLUMNS, remarks or Remarks())


def read_sft_rows(paths: Sequence[str], remarks: Remarks | None = None, *, all_answers: bool = False) -> list[SftRow]:
    """All of `sft_rows`."""
    return list(sft_rows(paths, remarks, all_answers=all_answers))


def sft_rows(paths: Sequence[str], remarks: Remarks | None = None, *, all_answers: bool = False) -> Iterator[SftRow]:
    """Supervised rows, file after file; what is learned is the last answer, or with ``all_answers`` every answer: each
    is a row, with the chat before it. Where the messages have a `weight`, it is the answers of weight 1 (that of a
    message without one) in any case.

    Raises:
        InputError: as `read_prompt_rows`.
    """

    def parse(row: dict[str, Any], origin: str, unused: Callable[[str], None]) -> Iterable[SftRow]:
        if row.get("messages") is not None:
            messages = read_messages(row["messages"], "messages", origin, unused)
        elif row.get("prompt") is not None:
            before = _chat(row["prompt"], "prompt", origin, unused)
            messages = (*before, Message("assistant", _text(row, "response", origin)))
        else:
            raise InputError(f"{origin}: neither messages nor prompt and response; a supervised row needs one of them")
        messages = _with_system(messages, row, origin)
        if messages[-1].role != "assistant" or len(messages) < 2:
            raise InputError(f"{origin}: the last message must be the assistant's, after at least one other")
        tools = read_tools(row["tools"], origin) if row.get("tools") else ()
        whole = SftRow(messages, origin, tools)
        if not all_answers and all(message.learned is None for message in messages):
            yield whole
            return
        answers = [
            i
            for i, message in enumerate(messages)
            if i and message.role == "assistant" and message.learned is not False
        ]
        for index in answers:
            yield dataclasses.replace(whole, messages=messages[: index + 1])
        if not answers:
            yield dataclasses.replace(whole, learned=False)

    return _each(paths, parse, SFT_COLUMNS, remarks or Remarks())


def _each(paths: Sequence[str], parse: Parse[Parsed], columns: Sequence[str], remarks: Remarks) -> Iterator[Parsed]:
    for path in data_files(paths):
        empty = True
        for name in unused_columns(path, columns):
            remarks.add(path, 0, f"nothing reads the column {name!r}, which is left out")
        for number, row in iterate(path, columns):
            origin = f"{path}, row {number}"

            def unused(name: str, path: str = path, number: int = number) -> None:
                remarks.add(path, number, f"nothing reads {name!r}, which is left out")

            for name in sorted(row.keys() - set(columns)):
                unused(name)
            remarks.see_id(path, number, row)
            try:
                parsed = list(parse(row, origin, unused))
            except RecursionError:
                raise InputError(f"{origin}: nested too deep") from None
            yield from parsed
            empty = False
        if empty:
            raise InputError(f"{path}: the data file is empty; it needs at least one row")


def _chat(value: Any, key: str, origin: str, unused: Callable[[str], None]) -> tuple[Message, ...]:
    """A chat, or text as its one user message."""
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{origin}: {key} is empty")
        return (Message("user", value),)
    return read_messages(value, key, origin, unused)


def _with_system(messages: tuple[Message, ...], row: dict[str, Any], origin: str) -> tuple[Message, ...]:
    """The chat with the text of the row's `system` before it."""
    system = row.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise InputError(f"{origin}: system must be text, got {kind_of(system)}")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content != system:
        raise InputError(f"{origin}: system and the chat's own system message differ; keep one of them")
    return messages


def _truths(value: Any, origin: str) -> list[str]:
    """The ground truths as text, at least one; numbers as JSON writes them. Whether a text can be
    one (a blank one, say) is for its ability's verifier to tell."""
    texts = []
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            raise InputError(f"{origin}: no ground truth; set reward_model.ground_truth")
        if isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one):
            one = str(one)
        if not isinstance(one, str):
            raise InputError(
                f"{origin}: reward_model.ground_truth must be text, a number or a list of them, got {kind_of(one)}; "
                "quote it"
            )
        texts.append(one)
    if not texts:
        raise InputError(f"{origin}: no ground truth; set reward_model.ground_truth")
    return list(dict.fromkeys(texts))


def _difficulty(row: dict[str, Any], origin: str) -> float | None:
    value = row.get("difficulty")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(
            f"{origin}: difficulty must be a number from 0 to 1, the share of wrong attempts, got {value!r}"
        )
    return float(value)


def _need(row: dict[str, Any], key: str, origin: str) -> Any:
    if row.get(key) is None:
        raise InputError(f"{origin}: {key} is missing; the row has {', '.join(row) or 'no keys'}")
    return row[key]


def _text(row: dict[str, Any], key: str, origin: str) -> str:
    value = _need(row, key, origin)
    if not isinstance(value, str) or not value:
        raise InputError(f"{origin}: {key} must be text that is not empty, got {kind_of(value)}")
    return value


def _json_values(value: Any) -> Any:
    """The value with all that JSON does not have turned into text."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item) for item in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
