"""What a step's figures warn of."""

from __future__ import annotations

from collections.abc import Mapping

from prime_megatron.config import TrainConfig
from prime_megatron.config.warn import warn_rare_success


class Alarms:
    """Looks at every step's figures; one rank's, all alike."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._rare_told = False

    def lines(self, figures: Mapping[str, float]) -> list[str]:
        """A line for each alarm: engine against trainer in every step that has it, rare success once."""
        found = []
        default = 1e-3 if self._config.models.dtype == "float32" else 5e-2
        threshold = self._config.rollout.logprob_alarm or default
        gap = figures["engine/logprob_gap_mean"]
        if gap > threshold:
            found.append(
                f"engine and trainer log-probs differ by {gap:.2e} on average, more than {threshold:.0e} "
                "(rollout.logprob_alarm)"
            )
        rare = warn_rare_success(self._config, figures["rollout/outcome"])
        if rare is not None and not self._rare_told:
            self._rare_told = True
            found.append(rare)
        return found
