"""How much patience the trainer has with an engine process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long to wait, how often to try."""

    max_restarts: int
    """Restarts in a row, without a finished generation between them."""
    generate_timeout_s: float
    alive_timeout_s: float
    """Longest silence of a generating engine."""
    update_timeout_s: float
