"""Figures by ability and by data source: `<figure>/ability/<name>` and `<figure>/data_source/<name>`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from prime_megatron.types import Prompt

NO_SOURCE = "none"
"""For rows without a data_source."""


def labels_of(prompt: Prompt) -> tuple[str, str]:
    """What a prompt counts under."""
    return f"ability/{prompt.ability}", f"data_source/{prompt.data_source or NO_SOURCE}"


def mean_by_label(figure: str, values: Iterable[tuple[Prompt, float]]) -> dict[str, float]:
    """Means of a prompt's value over the prompts of each label, by name."""
    by_label: dict[str, list[float]] = defaultdict(list)
    for prompt, value in values:
        for label in labels_of(prompt):
            by_label[label].append(value)
    return {f"{figure}/{label}": sum(found) / len(found) for label, found in sorted(by_label.items())}
