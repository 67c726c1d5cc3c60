"""How many failed requests are borne: each is counted as a response that did not come, until too many fail in a row."""

from __future__ import annotations

import threading

from prime_megatron.errors import RunError


class Tolerance:
    """Counts failures in a row, from any thread; a request that is answered ends the row.

    Args:
        most: failures in a row that end it, each after all its retries.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._last = ""

    def answered(self) -> None:
        """A request was answered, or refused for what it says."""
        with self._lock:
            if not self.exhausted:
                self._in_a_row = 0

    def failed(self, problem: str) -> None:
        """A request was given up."""
        with self._lock:
            self._in_a_row += 1
            self._last = problem

    @property
    def exhausted(self) -> bool:
        """Whether too many have failed."""
        return self._in_a_row >= self._most

    def check(self) -> None:
        """Raises RunError where too many have failed."""
        if self.exhausted:
            raise RunError(f"{self._in_a_row} requests failed in a row, the last one: {self._last}")
