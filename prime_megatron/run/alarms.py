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

    def lines(self, figures: Mapping[str, float], gap_limit: float | None) -> list[str]:
        """A line for each alarm: engine against trainer in every step that has it, rare success once.

        gap_limit: largest sound mean difference of their log-probs, as measured here (``step.engine_check``); None: it
        was not, as for a recording, whose log-probs are another run's.
        """
        found = []
        limit = self._config.rollout.logprob_alarm or gap_limit
        gap = figures["engine/logprob_gap_mean"]
        if limit is not None and not gap <= limit:
            found.append(
                f"engine and trainer log-probs differ by {gap:.2e} on average, and rounding explains {limit:.1e} "
                "(rollout.logprob_alarm sets another limit)"
            )
        rare = warn_rare_success(self._config, figures["rollout/outcome"])
        if rare is not None and not self._rare_told:
            self._rare_told = True
            found.append(rare)
        return found
