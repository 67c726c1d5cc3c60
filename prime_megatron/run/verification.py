"""How fast verdicts come, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.verify.pool import Usage


@dataclass(frozen=True)
class Verification:
    """One rank's since the last step.

    usage: of its worker processes. waited_s: seconds that it had nothing left to generate and waited for verdicts.
    """

    usage: Usage
    waited_s: float


def verify_speed(everyones: Sequence[Verification], wall_s: float) -> dict[str, float]:
    """The figures of a step of ``wall_s`` seconds; rates and waits only where something was graded in a process."""
    usage = sum((rank.usage for rank in everyones), Usage())
    figures = {
        "speed/verify_tests": float(usage.num_tests),
        "speed/verify_wait_share": max(rank.waited_s for rank in everyones) / wall_s,
    }
    if usage.num_answers:
        figures["speed/verify_queue_wait_s"] = usage.queue_wait_s / usage.num_answers
        figures["speed/verify_tests_per_s"] = usage.num_tests / usage.busy_s
    return figures
