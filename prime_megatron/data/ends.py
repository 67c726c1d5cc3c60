"""What ends a response: the end of a turn as the chat template writes it, and what the folder's files name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.data.chat import ChatTemplate
from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError
from prime_megatron.strict_json import read_json

TEMPLATE, TOKENIZER = "the chat template's end of turn", "the tokenizer's end of sequence"
_ANSWER = "0123456789"


@dataclass(frozen=True)
class Ends:
    """The ids that end a response and who names them; a warning where the template has an end that is no token."""

    named_by: Mapping[int, tuple[str, ...]]
    warning: str | None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first is the one written behind supervised responses whose template writes none."""
        return tuple(self.named_by)

    def describe(self, name_of: Mapping[int, str]) -> str:
        """One line for a run's start."""
        parts = [f"{name_of.get(id_, '?')!r} ({id_}: {', '.join(who)})" for id_, who in self.named_by.items()]
        return f"a response ends with {' or '.join(parts)}"


def find_ends(path: Path, template: ChatTemplate, vocab_size: int) -> Ends:
    """The only place that says what ends a response: the template's end of turn first, then the tokenizer's end of
    sequence, then what generation_config.json names, and where that names none, config.json. The engines stop at all.

    Raises:
        InputError: nothing names an end, or something is named that is no token id of the model.
    """
    who: dict[int, list[str]] = {}
    own = template.hf.eos_token_id
    end, warning = _end_of_turn(template)
    if end is not None:
        who.setdefault(end, []).append(TEMPLATE)
    if own is not None:
        who.setdefault(own, []).append(TOKENIZER)
    for name in ("generation_config.json", "config.json"):
        named = ends_in(path / name) if (path / name).is_file() else []
        for id_ in named:
            if id_ >= vocab_size:
                raise InputError(
                    f"{path / name}: eos_token_id {id_} is outside the model's vocabulary of {vocab_size}; name one of "
                    "its tokens"
                )
            who.setdefault(id_, []).append(name)
        if named:
            break
    if not who:
        raise InputError(f"{path}: the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if end is not None and who[end] == [TEMPLATE]:
        token = template.hf.convert_ids_to_tokens(end)
        warning = (
            f"{path}: the chat template ends a turn with {token!r} ({end}), which neither the tokenizer nor "
            "generation_config.json names as an end; this run stops there, other programs that read the folder run on: "
            "add it to eos_token_id in generation_config.json"
        )
    return Ends({id_: tuple(names) for id_, names in who.items()}, warning)


def _end_of_turn(template: ChatTemplate) -> tuple[int | None, str | None]:
    """(the first control token that the template writes behind an answer, a warning where what it writes has none)."""
    if not template.there:
        return None, None
    chat = [Message("user", "1"), Message("assistant", _ANSWER)]
    try:
        text = template.render(chat, add_generation_prompt=False)
    except InputError:
        return None, None  # it asks for more than a plain chat; the rows will tell
    _, found, tail = text.rpartition(_ANSWER)
    if not found:
        return None, None
    controls = set(template.hf.added_tokens_decoder) | set(template.hf.all_special_ids)
    for id_ in template.hf.encode(tail, add_special_tokens=False):
        if id_ in controls and str(template.hf.decode([id_], skip_special_tokens=False)).strip():
            return id_, None
    if not tail.strip():
        return None, None
    return None, (
        f"{template.folder}: the chat template ends a turn with {tail.strip()!r}, which is no token of its own: no "
        "engine can stop there; use the tokenizer that the template was made for"
    )


def ends_in(path: Path) -> list[int]:
    """eos_token_id of a generation_config.json or config.json. Raises InputError where it is not ids."""
    value = read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise InputError(f"{path}: eos_token_id = {value!r} is not a token id, or a list of them")
    return ids
