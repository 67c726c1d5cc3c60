"""How generated programs are run and scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from prime_megatron.config.base import Free, Section


class CodeConfig(Section):
    """Outcome rewards of generated programs (ability `code`)."""

    score: Literal["fraction", "all", "original"] = "fraction"
    """fraction: tests that pass over tests (the paper's). all: 1 if every test passes, else 0. original: 1 if all
    pass, else the share of the first ten that do, as the paper's own code scores."""
    jail: Free[Literal["landlock", "none"]] = "landlock"
    """landlock: a program reads Python and its libraries, writes one scratch folder, and reaches nothing else; the run
    is refused where the kernel lacks Landlock or seccomp. none: limits on time and memory only: what a model wrote
    runs with your rights."""
    timeout_s: Free[PositiveFloat] = Field(default=4.0, le=3600.0)
    """Wall-clock seconds of one test."""
    sample_timeout_s: Free[PositiveFloat] = Field(default=20.0, le=36_000.0)
    """Wall-clock seconds of one response's tests together; those that are left then count as failed."""
    memory_bytes: PositiveInt = Field(default=2**30, ge=2**27, le=2**50)
    """Address space of a program, the interpreter included."""
    output_bytes: PositiveInt = Field(default=16 * 2**20, ge=2**16, le=2**50)
    """What a program may write to its output before it is ended; twice the expected output where that is more."""
