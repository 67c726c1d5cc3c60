"""Every key of a config, read from its sections: dotted name, default, and whether a resumed run may change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from prime_megatron.config.base import OnResume, Section


@dataclass(frozen=True)
class Key:
    """A key that holds a value; sections are no keys."""

    name: str
    """Dotted, such as "rollout.sampling.top_p"."""
    default: Any
    """As JSON has it; None where the key has no default, or where the default is none."""
    on_resume: OnResume


def keys_of(section: type[Section]) -> Iterator[Key]:
    """Every key of a config class, in its order."""
    return _keys(section, None, "", OnResume.fixed)


def _keys(section: type[Section], defaults: Section | None, prefix: str, on_resume: OnResume) -> Iterator[Key]:
    """``defaults``: the section as its own parent presets it; ``on_resume``: what the section is marked with."""
    for name, field in section.model_fields.items():
        marked = _mark(field) or on_resume
        default = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            preset = default if isinstance(default, Section) else None
            yield from _keys(field.annotation, preset, f"{prefix}{name}.", marked)
        else:
            yield Key(f"{prefix}{name}", None if field.is_required() else to_jsonable_python(default), marked)


def _mark(field: FieldInfo) -> OnResume | None:
    return next((mark for mark in field.metadata if isinstance(mark, OnResume)), None)
