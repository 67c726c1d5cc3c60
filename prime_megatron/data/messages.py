"""Chat messages as rows hold them, checked; what a message has beside its role and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json

ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name")
"""What a template may read of a message beside role and content."""


@dataclass(frozen=True)
class Message:
    """A turn of a chat."""

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Those of FIELDS that the row has, for the chat template."""
    learned: bool | None = field(default=None, compare=False)
    """What the row's `weight` says: 0 false, 1 true; None: it says nothing."""

    def for_template(self) -> dict[str, Any]:
        """The turn as a chat template reads it."""
        return {"role": self.role, "content": self.content, **self.fields}


def read_messages(
    value: Any, key: str, origin: str, unused: Callable[[str], None] = lambda name: None
) -> tuple[Message, ...]:
    """A list of chat messages; a value of nothing (parquet fills a struct with them) counts as absent.

    Args:
        value: what the row has under `key`.
        origin: "file, row n", for errors.
        unused: told the name of every field that nothing reads.

    Raises:
        InputError: not a list of messages with a known role and text; a weight that is neither 0 nor 1.
    """
    if not isinstance(value, list):
        raise InputError(f"{origin}: {key} must be a list of chat messages, got {kind_of(value)}")
    if not value:
        raise InputError(f"{origin}: {key} has no messages")
    messages = []
    for index, item in enumerate(value):
        where = f"{origin}: {key}[{index}]"
        if not isinstance(item, dict):
            raise InputError(f"{where} must be an object with role and content, got {kind_of(item)}")
        messages.append(_message(item, where, unused))
        if messages[-1].role == "system" and index:
            raise InputError(f"{where}: a system message must come first")
    return tuple(messages)


def read_tools(value: Any, origin: str) -> tuple[dict[str, Any], ...]:
    """A row's tools: a list of objects, or that list as JSON text. Raises InputError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise InputError(f"{origin}: tools is text that is not JSON; give a list of objects") from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError(f"{origin}: tools must be a list of objects, got {kind_of(value)}")
    return tuple(value)


def kind_of(value: Any) -> str:
    """A value's kind, for a person."""
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text" if value else "empty text"
    return names.get(type(value), type(value).__name__)


def _message(item: dict[str, Any], where: str, unused: Callable[[str], None]) -> Message:
    role, content = item.get("role"), _content(item, where)
    if role not in ROLES:
        raise InputError(f"{where} has the unknown role {role!r}; use {', '.join(ROLES)}")
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise InputError(f"{where}: weight must be 0 (not learned) or 1, got {weight!r}")
    given = {name: value for name, value in item.items() if value not in (None, "", [])}
    for name in given.keys() - {"role", "content", "weight", *FIELDS}:
        unused(name)
    fields = {name: given[name] for name in FIELDS if name in given}
    for name in fields.keys() - {"tool_calls"}:
        if not isinstance(fields[name], str):
            raise InputError(f"{where}: {name} must be text, got {kind_of(fields[name])}")
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"], where)
    return Message(role, content, fields, None if weight is None else bool(weight))


def _content(item: dict[str, Any], where: str) -> str:
    """The text; of a list of parts (as chat APIs have it) their texts, joined."""
    content = item.get("content")
    if content is None and item.get("tool_calls"):
        return ""
    if isinstance(content, list) and content:
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(content):
            raise InputError(f"{where}: content has a part that is no text; only text can be learned")
        return "".join(texts)
    if not isinstance(content, str):
        raise InputError(f"{where}: content must be text, got {kind_of(content)}")
    return content


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls; arguments that are JSON text become the object, which templates write as JSON again."""
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise InputError(f"{where}: tool_calls must be a list of objects, got {kind_of(value)}")
    calls = []
    for call in value:
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments)
            except ValueError:
                raise InputError(f"{where}: tool_calls has arguments that are not JSON") from None
            function = {**function, "arguments": arguments}
            call = {**call, "function": function} if "function" in call else function
        calls.append(call)
    return calls
