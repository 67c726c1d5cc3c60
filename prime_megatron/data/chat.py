"""A folder's chat template: chats to text, and what of that text is a message's own and never a control token."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError

OURS = frozenset({"messages", "tools", "add_generation_prompt", "documents", "tokenize", "chat_template"})
"""Names in a template that no argument of the user's may take."""


@dataclass(frozen=True)
class ChatOptions:
    """How chats are rendered: data.template_kwargs and data.control_tokens."""

    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """More arguments of the chat template, such as enable_thinking."""
    control_tokens: Literal["text", "refuse"] = "text"
    """What control tokens in the text of a system, user or tool message are: plain text, or an error."""


DEFAULT_OPTIONS = ChatOptions()
"""Nothing asked for."""


class ChatTemplate:
    """Renders chats. A control token that a message other than the assistant's writes is guarded: in the rendered text
    a mark of private-use characters stands for it, so that it can be told from those of the template.

    Args:
        hf: the tokenizer, with its template or without one.
        folder: for messages.
        options: see `ChatOptions`.
    """

    def __init__(self, hf: PreTrainedTokenizerBase, folder: str, options: ChatOptions) -> None:
        self.hf = hf
        self.folder = folder
        self.options = options
        special = {token.content for token in hf.added_tokens_decoder.values() if token.special}
        self._controls = sorted({*special, *hf.all_special_tokens}, key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(re.escape(token) for token in self._controls if token.strip()) or r"(?!)")
        self._check_arguments()

    @property
    def there(self) -> bool:
        """Whether the tokenizer has a template."""
        return self.hf.chat_template is not None

    def guard(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The messages with the control tokens in them guarded, and the character around each ("": there are none).

        Raises:
            InputError: with control_tokens "refuse", naming the token.
        """
        if not any(self._control.search(message.content) for message in messages if message.role != "assistant"):
            return list(messages), ""
        text = "".join(message.content for message in messages)
        mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in text)

        def guarded(found: re.Match[str]) -> str:
            if self.options.control_tokens == "refuse":
                raise InputError(
                    f"a message has the control token {found.group()!r} in its text; take it out, or set "
                    "data.control_tokens to text"
                )
            return f"{mark}{self._controls.index(found.group())}{mark}"

        return [
            message
            if message.role == "assistant"
            else dataclasses.replace(message, content=self._control.sub(guarded, message.content))
            for message in messages
        ], mark

    def pieces(self, text: str, mark: str) -> list[tuple[str, bool]]:
        """Rendered text as (piece, whether it is a guarded control token), each mark as what it stands for."""
        if not mark:
            return [(text, False)]
        parts = text.split(mark)
        return [(self._controls[int(part)] if i % 2 else part, bool(i % 2)) for i, part in enumerate(parts)]

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, add_generation_prompt: bool
    ) -> str:
        """The chat as the text that the model reads.

        Without a chat template a single user message stands as it is (a base model continues the text); anything
        else has no meaning then and is refused.

        Raises:
            InputError: no template for a chat that needs one, or the template refuses the chat.
        """
        if not self.there:
            if len(messages) == 1 and messages[0].role == "user" and not tools:
                return messages[0].content
            raise InputError(
                f"{self.folder}: the tokenizer has no chat template, and a chat of {len(messages)} messages "
                f"({', '.join(message.role for message in messages)}) needs one; add chat_template.jinja to the "
                "folder, or use rows of one user message and no data.system_prompt"
            )
        try:
            text = self.hf.apply_chat_template(
                [message.for_template() for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.options.arguments,
            )
        except Exception as error:  # a template is a program: it raises whatever its operations raise
            reason = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.folder}: the chat template refuses a chat: {_line(reason)}") from None
        assert isinstance(text, str)
        return text

    def check_fields(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        """Raise InputError where the template leaves out what a row has beside its texts: tools, the calls of any turn,
        the thought of a last answer. (The thoughts of earlier turns are left out by design.)"""
        last = messages[-1]
        thought = {name for name in last.fields if name in ("reasoning_content", "reasoning", "thinking")}
        calls = any("tool_calls" in message.fields for message in messages)
        whole = self.render(messages, tools, add_generation_prompt=False) if thought or calls or tools else ""
        for name, used in (*((name, True) for name in sorted(thought)), ("tool_calls", calls), ("tools", bool(tools))):
            if used and whole == self._without(name, messages, tools):
                raise InputError(
                    f"{self.folder}: the chat template does not write the row's {name}; write it into the content, "
                    "take it out of the row, or use a template that reads it"
                )

    def _without(self, name: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        bare = [
            dataclasses.replace(message, fields={key: message.fields[key] for key in message.fields if key != name})
            for message in messages
        ]
        return self.render(bare, () if name == "tools" else tools, add_generation_prompt=False)

    def _check_arguments(self) -> None:
        """Raise InputError for an argument that the template does not read: it would be dropped silently."""
        arguments = self.options.arguments
        if not arguments:
            return
        if not self.there:
            raise InputError(f"data.template_kwargs: {self.folder} has no chat template that could read them")
        try:
            known = meta.find_undeclared_variables(_ENVIRONMENT.parse(self.hf.get_chat_template())) - OURS
        except TemplateError:
            return  # tags of transformers' own: what the template reads is not known here
        for name in arguments:
            if name in OURS or name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise InputError(
                    f"data.template_kwargs: the chat template of {self.folder} does not read {name!r} "
                    f"(it reads {', '.join(sorted(known)) or 'none'}){hint}"
                )


_ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols"])


def _line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "it raises"
