"""Config of the supervised stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from prime_megatron.config.base import Free
from prime_megatron.config.model import OptimizerConfig
from prime_megatron.config.paths import UserPath
from prime_megatron.config.run import RowsData, RunSection, StageConfig


class SftRun(RunSection):
    """The run itself; its length is steps or epochs, one of both."""

    steps: Free[NonNegativeInt] = 0
    """Optimizer steps; 0: as many as epochs take. A resumed run may change them unless a learning rate depends on the
    last one."""
    epochs: NonNegativeInt = 0
    """Passes over the rows: each is learned exactly so often, and the last step has what is left; 0: steps says when
    the run ends, in the middle of a pass perhaps."""


class SftData(RowsData):
    """Supervised rows: JSONL or parquet with `messages` (the last one the assistant's), or `prompt` and `response`."""

    answers: Literal["last", "all"] = "last"
    """Which of a chat's answers are learned: the last, or all. Each is an example of its own behind the chat before it,
    as a rollout would read it. A row whose messages have a `weight` says it itself."""
    held_out: Free[tuple[UserPath, ...]] = Field(default=())
    """Files with rows that are only measured; see eval_every."""
    held_out_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Part of the rows of train that is measured in place of learned, drawn by run.seed; a chat stays whole."""


class SftConfig(StageConfig):
    """Supervised warm-up: `prime-megatron sft CONFIG.yaml`. A resumed run may change what is marked `Free`."""

    run: SftRun
    """The run itself."""
    data: SftData
    """Supervised rows."""
    batch_size: PositiveInt = 96
    """Rows per optimizer step over all ranks."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, schedule="cosine")
    """Its optimizer."""
    eval_every: Free[NonNegativeInt] = 0
    """Steps between measurements on the held-out rows; 0: before the first step and after the last one only."""
