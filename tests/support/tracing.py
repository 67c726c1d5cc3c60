"""Which config keys the package reads: every read of a section's field, by the key's full path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import prime_megatron
from prime_megatron.config import PrmConfig, ScoreConfig, SftConfig, TrainConfig
from prime_megatron.config.base import Section

PACKAGE = Path(prime_megatron.__file__).parent
CONFIG = PACKAGE / "config"
ROOTS: dict[type, str] = {TrainConfig: "train", SftConfig: "sft", PrmConfig: "prm", ScoreConfig: "score"}


def leaves(section: type[Section], path: str) -> Iterator[str]:
    """Full paths of every key below a section class."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if inner is None:
            yield f"{path}.{name}"
        else:
            yield from leaves(inner, f"{path}.{name}")


def counts(frame: FrameType | None) -> bool:
    """Whether this read is a use: by the package, or by a section's own property that the package reads. Checks of the
    config, its printing and its comparison are none."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if not file.is_relative_to(CONFIG):
            return file.is_relative_to(PACKAGE)
        if not isinstance(frame.f_locals.get("self"), Section):
            return False
        frame = frame.f_back
    return False


@contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """Collects the full paths that are read within the block, such as "train.prm.beta"."""
    reads: set[str] = set()
    paths: dict[int, str] = {}
    kept: list[Section] = []
    plain = Section.__getattribute__

    def traced(self: Section, name: str) -> Any:
        value = plain(self, name)
        cls = type(self)
        if name not in cls.__pydantic_fields__:
            return value
        path = ROOTS.get(cls) or paths.get(id(self))
        if path is None:
            return value
        if isinstance(value, Section):
            paths[id(value)] = f"{path}.{name}"
            kept.append(value)  # an id is only good while its object lives
        elif counts(sys._getframe(1)):
            reads.add(f"{path}.{name}")
        return value

    Section.__getattribute__ = traced  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        del Section.__getattribute__
