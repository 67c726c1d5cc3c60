"""Whether the PRM is still right: how often to look, what counts as a collapse, what then."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, NonNegativeInt, PositiveInt

from prime_megatron.config.base import Section


class CollapseAction(StrEnum):
    """What a run does while the alarm of prm.health is on."""

    warn = "warn"
    """It says so and goes on."""
    freeze = "freeze"
    """The PRM learns no more; its rewards still count."""
    outcome_only = "outcome_only"
    """Process rewards leave the advantage, as with advantage.process_weight 0; the PRM goes on learning."""


class HealthConfig(Section):
    """The PRM against its frozen copy on responses that it never learns from (docs/process-rewards.md)."""

    every: NonNegativeInt = 0
    """Steps between checks; 0: none, and nothing is held out."""
    steps: PositiveInt = 1
    """First steps of the run whose responses are held out: the policy learns from them, the PRM does not. The PRM waits
    longer where no prompt of theirs has a right and a wrong response. Unused where eval.prm_rows names labelled
    responses, which are the held-out ones then."""
    margin: float = Field(default=0.05, ge=-0.5, le=0.5)
    """A check fails when the PRM's pair accuracy is below its frozen copy's by more than this, and passes when it is
    not below it at all; negative: it fails where the PRM is not better than its copy by as much, and passes where it
    is."""
    checks: PositiveInt = 2
    """Failed checks in a row that begin the alarm, and passed checks in a row that end it."""
