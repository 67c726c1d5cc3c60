"""What a run has come to so far, as far as its summary and its log need it; saved with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PRM_WINDOW = 10
"""Steps that the summary's PRM accuracy is the mean of: one step's few groups say little."""


@dataclass
class Progress:
    """What the summary needs of the run so far; saved with a checkpoint."""

    accuracy_before: float | None = None
    accuracy_after: float | None = None
    evaluated: dict[str, float] = field(default_factory=dict)
    """The last evaluation, by metric, for the models' cards."""
    prm_accuracies: list[float] = field(default_factory=list)
    """Of the last PRM_WINDOW steps, each before the step's update."""
    num_tokens: int = 0
    num_restarts: int = 0
    """Of engines' processes, over all replicas and attempts."""
    owed: dict[str, Any] | None = None
    """See `owe`; None where the last step is logged."""

    def owe(self, figures: dict[str, float], samples_bytes: int, *, evaluated: bool) -> None:
        """Note what the next attempt completes where this one ends before the step is logged.

        Args:
            figures: of the step, so far.
            samples_bytes: size of samples.jsonl with the rows that belong to them.
            evaluated: they have the evaluation's.
        """
        self.owed = {"figures": dict(figures), "evaluated": evaluated, "samples_bytes": samples_bytes}
