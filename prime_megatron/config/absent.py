"""The word none: absent, one of a key's choices, or text. Which one, the key's type says."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from prime_megatron.config.explain import section_of
from prime_megatron.config.strict_yaml import KeyPath, Unquoted


def settle_none(model: type[BaseModel], values: dict[str, Any]) -> Iterator[KeyPath]:
    """Make null of the word none, written without quotes, in ``values`` where a key may be absent; yields the keys that
    take text, which the word could be as well as nothing."""
    for leaf in list(_leaves(model, values, ())):
        if not isinstance(leaf.holder[leaf.key], Unquoted):
            continue
        if type(None) in leaf.kinds and not leaf.is_item:
            leaf.holder[leaf.key] = None
        elif str in leaf.kinds:
            yield leaf.path


def takes_text(model: type[BaseModel], parts: tuple[str, ...]) -> bool:
    """Whether a key's own value may be text."""
    section: type[BaseModel] | None = model
    kinds: frozenset[Any] = frozenset()
    for part in parts:
        if section is None or part not in section.model_fields:
            return False
        annotation = section.model_fields[part].annotation
        section, kinds = section_of(annotation), frozenset(_direct(annotation))
    return str in kinds


@dataclass(frozen=True)
class _Leaf:
    """A value that is no section, in the list or mapping that holds it."""

    holder: Any
    key: Any
    path: KeyPath
    kinds: frozenset[Any]
    is_item: bool
    """Of a list or of a mapping with names of the user's."""


def _leaves(model: type[BaseModel], values: dict[str, Any], path: KeyPath) -> Iterator[_Leaf]:
    for name, info in model.model_fields.items():
        value, here = values.get(name), (*path, name)
        section = section_of(info.annotation)
        if section is not None and isinstance(value, dict):
            yield from _leaves(section, value, here)
        elif isinstance(value, list | dict):
            items = frozenset(kind for one in _direct(info.annotation) for kind in _inner(one))
            for key in range(len(value)) if isinstance(value, list) else value:
                yield _Leaf(value, key, (*here, key), items, is_item=True)
        elif name in values:
            yield _Leaf(values, name, here, frozenset(_direct(info.annotation)), is_item=False)


def _direct(annotation: Any) -> Iterator[Any]:
    """The types that a union is of, what is in lists left out."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _direct(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _direct(part)
    else:
        yield annotation


def _inner(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (tuple, list, dict):
        for part in (
            typing.get_args(annotation)[-1:] if typing.get_origin(annotation) is dict else typing.get_args(annotation)
        ):
            yield from _direct(part)
