"""What a step's figures warn of."""

from __future__ import annotations

from collections.abc import Mapping

from prime_megatron.config import CollapseAction, TrainConfig
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
        if figures.get("prm_health/change"):  # of a step with a check
            found.append(self._collapse(figures))
        return found

    def _collapse(self, figures: Mapping[str, float]) -> str:
        """What the alarm of prm.health that begins or ends with this step says."""
        health, action = self._config.prm.health, self._config.prm.on_collapse
        told = (
            f"PRM health: pair accuracy {figures['prm_health/pair_accuracy']:.3f} on held-out responses, that of its "
            f"frozen copy {figures['prm_health/frozen_pair_accuracy']:.3f}"
        )
        if not figures["prm_health/alarm"]:
            return f"{told}: good again for {health.checks} checks in a row; the alarm ends"
        then = {
            CollapseAction.warn: "the run goes on (prm.on_collapse warn)",
            CollapseAction.freeze: "it learns no more (prm.on_collapse freeze)",
            CollapseAction.outcome_only: "its rewards are left out until it is good (prm.on_collapse outcome_only)",
        }
        return f"{told}, {health.checks} checks in a row beyond prm.health.margin {health.margin}; {then[action]}"
