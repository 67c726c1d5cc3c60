"""Typed access to the keys of one config.json: a fault is one line of key, value and what is right."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from prime_megatron.errors import InputError

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Keys:
    """A config.json, or a dict inside it. Faults are InputErrors without the file's name."""

    raw: Mapping[str, Any]
    defaults: Mapping[str, Any]
    """What transformers assumes where a key is left out; a key that is in neither is missing."""
    nullable: Collection[str] = ()
    """Keys that may be null; the others have no meaning then."""
    place: str = ""
    """"rope_parameters." inside that dict."""

    def value(self, key: str) -> Any:
        """The key's value or default; None only for a nullable key."""
        if key not in self.raw:
            if key not in self.defaults:
                raise InputError(f"{self.place}{key} is missing")
            return self.defaults[key]
        if self.raw[key] is None and key not in self.nullable:
            raise InputError(f"{self.place}{key} is null; give a value" + self._or_default(key))
        return self.raw[key]

    def whole(self, key: str, *, least: int = 1) -> int:
        """A whole number, not less than ``least``."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(key, f"a whole number from {least} on")
        return int(value)

    def whole_or_none(self, key: str) -> int | None:
        """A whole number >= 1, or null."""
        return None if self.value(key) is None else self.whole(key)

    def number(self, key: str) -> float:
        """A finite number above 0."""
        value = self.value(key)
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or not math.isfinite(value) or value <= 0:
            self.refuse(key, "a number above 0")
        return float(value)

    def weight(self, key: str) -> float:
        """A finite number, 0 or more."""
        return 0.0 if self.value(key) == 0 and not isinstance(self.value(key), bool) else self.number(key)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self.value(key)
        if not isinstance(value, str):
            self.refuse(key, "a string")
        return str(value)

    def only(self, key: str, *wanted: Any) -> None:
        """Refuse what this project does not compute."""
        value = self.value(key)
        if not any(type(value) is type(one) and value == one for one in wanted):
            self.refuse(key, " or ".join(_show(one) for one in wanted))

    def unset(self, key: str, why: str) -> None:
        """Refuse a key that is there and says something; false and null say nothing."""
        if key in self.raw and self.raw[key] is not None and self.raw[key] is not False:
            raise InputError(f"{self.place}{key} = {_show(self.raw[key])} is not supported: {why}")

    def refuse(self, key: str, right: str) -> None:
        """Raise the line of a wrong value."""
        raise InputError(f"{self.place}{key} = {_show(self.value(key))} is not supported, only {right}")

    def _or_default(self, key: str) -> str:
        return f", or leave the key out (then {_show(self.defaults[key])})" if key in self.defaults else ""


def check_unread(keys: Keys, vocab: int) -> None:
    """Keys that the shape does not depend on, but that transformers and the engines take: wrong types are refused."""
    for key in ("torch_dtype", "dtype"):
        if keys.raw.get(key) is not None and keys.raw[key] not in DTYPES:
            raise InputError(f"{key} = {_show(keys.raw[key])} is not supported, only {', '.join(DTYPES)}")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = keys.raw.get(key)
        many = key == "eos_token_id" and isinstance(value, list)
        for one in value if many else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int)):
                raise InputError(f"{key} = {_show(value)} is not a token id (a whole number)")
    pad = keys.raw.get("pad_token_id")
    if pad is not None and not -vocab <= pad < vocab:
        raise InputError(f"pad_token_id = {pad} is outside the vocabulary of {vocab}")
    keys.unset("per_layer_config", "every layer has one shape here")


def _show(value: Any) -> str:
    """As JSON spells it, short."""
    named = {None: "null", True: "true", False: "false"}
    text = named[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
