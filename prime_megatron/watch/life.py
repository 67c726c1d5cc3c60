"""Whether the run that owns a folder lives."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prime_megatron.run.lock import LOCK_FILE, PATIENCE_S, Owner, known_to_live, last_sign_ns, read_owner
from prime_megatron.run.output_dir import DONE_FILE

ASK_EVERY_S = 60.0
"""Shortest time between two questions about an owner on another host: they go to SLURM's controller."""


class State(StrEnum):
    """How a run stands."""

    nothing = "nothing has begun"
    running = "running"
    finished = "finished"
    stopped = "not running"
    dead = "dead"


@dataclass(frozen=True)
class Life:
    """Who owns the folder, and whether it lives."""

    owner: Owner | None
    lives: bool
    sign_s: float | None
    """Age of the owner's last sign of life, where that is all there is to go by."""
    done: bool
    """The run has said that it is done."""


class LifeWatch:
    """Looks at a folder's lock again and again. An owner that cannot be asked about is dead when it gave no sign within
    PATIENCE_S of watching; at first sight its last sign counts, by the clock of this host.

    Args:
        folder: run.output_dir.
        now: seconds since 1970.
        known: whether an owner lives, None where that cannot be asked.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], float] = time.time,
        known: Callable[[Owner], bool | None] = known_to_live,
    ) -> None:
        self._folder = folder
        self._now = now
        self._known = known
        self._asked: tuple[Owner, float, bool | None] | None = None
        self._sign_ns = 0
        self._sign_seen_s = 0.0

    def look(self) -> Life:
        """The folder's owner as it is now."""
        done = (self._folder / DONE_FILE).exists()
        owner = read_owner(self._folder)
        if owner is None:
            return Life(None, lives=False, sign_s=None, done=done)
        known = self._ask(owner)
        if known is not None:
            return Life(owner, known, None, done)
        age_s = self._age_of_sign()
        return Life(owner, age_s <= PATIENCE_S, age_s, done)

    def _ask(self, owner: Owner) -> bool | None:
        if owner.host == socket.gethostname():
            return self._known(owner)
        now = self._now()
        if self._asked is None or self._asked[0] != owner or now - self._asked[1] >= ASK_EVERY_S:
            self._asked = (owner, now, self._known(owner))
        return self._asked[2]

    def _age_of_sign(self) -> float:
        now, sign_ns = self._now(), last_sign_ns(self._folder / LOCK_FILE)
        if sign_ns != self._sign_ns:
            first_look, self._sign_ns = self._sign_ns == 0, sign_ns
            self._sign_seen_s = min(now, sign_ns / 1e9) if first_look else now
        return now - self._sign_seen_s
