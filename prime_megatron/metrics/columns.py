"""The figures of a progress line, by the kind of run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One figure of the progress line."""

    key: str
    """The metric."""
    label: str
    format: str
    """A format spec, such as ".3f"."""


TRAIN_COLUMNS = (
    Column("rollout/outcome", "outcome", ".3f"),
    Column("eval/accuracy", "eval", ".3f"),
    Column("prm/accuracy", "PRM acc", ".3f"),
    Column("policy/loss", "loss", ".4f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron train`; a figure that the step did not log is left out."""

SFT_COLUMNS = (
    Column("sft/loss", "loss", ".4f"),
    Column("eval/loss", "held-out loss", ".4f"),
    Column("eval/perplexity", "perplexity", ".3f"),
    Column("sft/grad_norm", "grad", ".2f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("speed/utilisation", "MFU", ".1%"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron sft`."""

PRM_COLUMNS = (
    Column("prm/accuracy", "PRM acc", ".3f"),
    Column("prm/pair_accuracy", "pairs", ".3f"),
    Column("eval/prm_accuracy", "held-out acc", ".3f"),
    Column("eval/prm_pair_accuracy", "held-out pairs", ".3f"),
    Column("prm/loss", "loss", ".4f"),
    Column("speed/tokens_per_s", "tok/s", ",.0f"),
    Column("time/step_s", "s", ".1f"),
)
"""The progress line of `prime-megatron prm`."""


def column_texts(columns: tuple[Column, ...], values: Mapping[str, Any]) -> list[str]:
    """Label and figure of every column that has one."""
    return [
        f"{column.label} {format(values[column.key], column.format)}"
        for column in columns
        if values.get(column.key) is not None
    ]
