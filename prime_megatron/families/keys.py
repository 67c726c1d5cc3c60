"""Typed access to the keys of one config.json: a fault is one line of key, value and what is right."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from prime_megatron.errors import InputError

DTYPES = ("float64", "float32", "bfloat16", "float16")

MOST_OF_A_KEY = 2**31 - 1
MOST = {"num_hidden_layers": 10_000, "num_experts": 100_000, "num_local_experts": 100_000}
"""What is counted out tensor by tensor."""


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
                raise InputError(f"key {self.place + key!r} is missing")
            return self.defaults[key]
        if self.raw[key] is None and key not in self.nullable:
            raise InputError(f"{self.place}{key} is null; give a value" + self._or_default(key))
        return self.raw[key]

    def whole(self, key: str, *, least: int = 1) -> int:
        """A whole number, not less than ``least``."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(key, f"a whole number from {least} on")
        if value > MOST.get(key, MOST_OF_A_KEY):
            self.refuse(key, f"a whole number up to {MOST.get(key, MOST_OF_A_KEY)}")
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

    def real(self, key: str, *, zero: bool = False) -> float:
        """A number above 0 (or 0) with a decimal point: transformers takes no whole number there."""
        value = self.value(key)
        if not isinstance(value, float) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            self.refuse(key, f"a number {'from' if zero else 'above'} 0 with a decimal point")
        return value

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
        for one in value if many else [] if value is None else [value]:
            if isinstance(one, bool) or not isinstance(one, int):
                raise InputError(f"{key} = {_show(value)} is not a token id (a whole number)")
            if key == "eos_token_id" and not 0 <= one < vocab:
                raise InputError(f"{key} = {_show(value)} is outside the vocabulary of {vocab}")
    pad = keys.raw.get("pad_token_id")
    if pad is not None and not -vocab <= pad < vocab:
        raise InputError(f"pad_token_id = {pad} is outside the vocabulary of {vocab}")
    if keys.raw.get("per_layer_config") is not None:
        raise InputError("per_layer_config is not supported: every layer has one shape here")
    for key, kinds in _UNREAD.items():
        value = keys.raw.get(key)
        if key in keys.raw and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise InputError(f"{key} = {_show(value)} is not what transformers reads there")


_UNREAD: dict[str, tuple[type, ...]] = {
    "use_cache": (bool,),
    "output_router_logits": (bool,),
    "initializer_range": (float,),
    "attention_dropout": (int, float),
    "router_jitter_noise": (float,),
    "router_aux_loss_coef": (float,),
    "pretraining_tp": (int, type(None)),
}
"""Keys that do not change what is computed here, and their types."""


def _show(value: Any) -> str:
    """As JSON spells it, short."""
    named = {None: "null", True: "true", False: "false"}
    text = named[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
