"""What every config section shares: its strictness, and the mark that says what a resumed run may change."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A config section: unknown keys are errors, values keep their type, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_default=True
    )


class OnResume(StrEnum):
    """Whether a key may differ between a checkpoint and the run that continues it."""

    free = "free"
    """It says how the run runs (layout, engine, limits of time, logs, saving), not what it computes."""
    fixed = "fixed"
    """It is part of what the run computes. Every key that carries no mark is fixed."""


Value = TypeVar("Value")

Seconds = Annotated[float, Field(gt=0, le=1e8)]
"""Type of a limit of time; three years are as good as none, and fit every clock."""

Free = Annotated[Value, OnResume.free]
"""Type of a key that a resumed run may change; on a section it holds for every key in it: ``name: Free[str]``."""

Fixed = Annotated[Value, OnResume.fixed]
"""Type of a key that a resumed run may not change, inside a section that it may."""
