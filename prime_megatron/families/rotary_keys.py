"""Rotary embeddings: config.json's spellings of them, read into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families.base import RopeScaling
from prime_megatron.families.keys import Keys

_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Kind -> the keys that it needs."""
_YARN: dict[str, Any] = {
    "attention_factor": None, "beta_fast": None, "beta_slow": None,
    "mscale": None, "mscale_all_dim": None, "truncate": True,
}  # fmt: skip
"""What yarn may have beside them."""
_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_YARN} | {
    key for needed in _KINDS.values() for key in needed
}


def read_rope(raw: Mapping[str, Any], default_base: float, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling, as transformers 5 reads them (``modeling_rope_utils.convert_rope_params_to_dict``).

    rope_scaling wins over rope_parameters, a base inside the dict over rope_theta beside it, rope_type over type, and
    original_max_position_embeddings beside the dict over the one inside. Raises InputError without the file's name.
    """
    place, given = _dict_of(raw)
    outer = Keys(raw, {"rope_theta": default_base, "partial_rotary_factor": 1.0}, {"partial_rotary_factor"})
    for keys in (outer, Keys(given, {"partial_rotary_factor": 1.0}, {"partial_rotary_factor"}, place)):
        if keys.value("partial_rotary_factor") is not None and keys.number("partial_rotary_factor") != 1.0:
            keys.refuse("partial_rotary_factor", "1.0 (heads are turned as a whole)")
    merged = dict(given)
    merged.setdefault("rope_type", given.get("type", "default"))
    beside = raw.get("original_max_position_embeddings", None)
    if beside is not None and merged["rope_type"] in ("llama3", "yarn"):
        merged["original_max_position_embeddings"] = beside
    keys = Keys(merged, {"original_max_position_embeddings": max_positions}, (), place)
    kind = keys.text("rope_type")
    if kind not in _KINDS:
        raise InputError(f"{place}rope_type: rope scaling {kind!r} is not supported, only {', '.join(_KINDS)}")
    base = keys.number("rope_theta") if "rope_theta" in given else outer.number("rope_theta")
    if base <= 1.0:
        raise InputError(f"{place if 'rope_theta' in given else ''}rope_theta = {base} is not supported, only above 1")
    _check_keys(given, kind, place)
    return base, _scaling(keys, kind, max_positions)


def _dict_of(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the dict's name with a dot, its content), empty where there is none."""
    found: tuple[str, dict[str, Any]] = ("rope_parameters.", {})
    for name in ("rope_parameters", "rope_scaling"):  # the last one wins
        value = raw.get(name, None)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise InputError(f"{name} = {value!r} is not supported, only a dict such as {{'rope_type': 'default'}}")
        nested = [key for key, inner in value.items() if isinstance(inner, dict) or key.endswith("_attention")]
        if nested:
            raise InputError(
                f"{name}: one dict for each kind of layer ({nested[0]}) is not supported, only one for all"
            )
        if value:
            found = (f"{name}.", value)
    return found


def _check_keys(given: Mapping[str, Any], kind: str, place: str) -> None:
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_KINDS[kind]} | (
        set(_YARN) if kind == "yarn" else set()
    )
    for key, value in given.items():
        # A null of another kind is how some exports write that it has none.
        if key not in known and not (key in _KNOWN and value is None):
            raise InputError(f"{place}{key} means nothing for rope_type {kind!r}; take it out, or set the right kind")


def _scaling(keys: Keys, kind: str, max_positions: int) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "yarn":
        return _yarn(keys)
    factor = keys.number("factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
    if high <= low:
        keys.refuse("high_freq_factor", f"more than low_freq_factor {low}")
    return RopeScaling("llama3", factor, low, high, keys.whole("original_max_position_embeddings"))


def _yarn(keys: Keys) -> RopeScaling:
    """Peng et al. 2023 (arXiv 2309.00071); the attention factor as transformers' ``_compute_yarn_parameters``."""
    own = Keys(keys.raw, {**keys.defaults, **_YARN}, {name for name in _YARN if name != "truncate"}, keys.place)
    factor, original = own.number("factor"), own.whole("original_max_position_embeddings")
    numbers = {
        name: None if own.value(name) is None else own.number(name)
        for name in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    }
    attention = numbers["attention_factor"]
    if attention is None:
        scale, over = numbers["mscale"], numbers["mscale_all_dim"]
        both = scale is not None and over is not None
        attention = _magnitude(factor, scale) / _magnitude(factor, over) if both else _magnitude(factor, 1.0)
    fast, slow = numbers["beta_fast"] or 32.0, numbers["beta_slow"] or 1.0
    if fast < slow:
        own.refuse("beta_fast", f"beta_slow ({slow}) or more")
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention,
        truncate=own.flag("truncate"),
    )


def _magnitude(factor: float, scale: float | None) -> float:
    assert scale is not None
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
