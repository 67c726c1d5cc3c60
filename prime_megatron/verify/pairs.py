"""Pairs of an answer and a ground truth that were asked before: siblings often give the same answer."""

import collections
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from prime_megatron.verify.answer import DIED, ERROR, TIMEOUT, Verdict, finished

Pair = tuple[str, str]
Out = TypeVar("Out")
_MAX_PAIRS = 4096
_FAILED_S = 600.0
"""A pair that timed out is tried again after so long: the machine may have been busy."""


class PairMemory:
    """Verdicts by pair: a pair in work is waited for, a decided one is known, one that timed out is not tried again.

    Safe from any thread. Errors of the grader, and what raised, are not kept. At most `_MAX_PAIRS` pairs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[Pair, tuple[Verdict, float]] = collections.OrderedDict()
        self._in_work: dict[Pair, Future[Verdict]] = {}

    def get(self, pair: Pair, ask: "Callable[[], Future[Verdict]]") -> "Future[Verdict]":
        """The verdict on a pair; ask: starts to decide it."""
        with self._lock:
            known = self._known.get(pair)
            if known is not None and time.monotonic() < known[1]:
                self._known.move_to_end(pair)
                return finished(known[0])
            future = self._in_work.get(pair)
            if future is not None:
                return future
            future = self._in_work[pair] = ask()
        future.add_done_callback(lambda done: self._keep(pair, done))
        return future

    def _keep(self, pair: Pair, done: "Future[Verdict]") -> None:
        with self._lock:
            self._in_work.pop(pair, None)
            if done.cancelled() or done.exception() is not None or done.result().verdict == ERROR:
                return
            verdict = done.result()
            until_s = time.monotonic() + _FAILED_S if verdict.verdict in (TIMEOUT, DIED) else float("inf")
            self._known[pair] = (verdict, until_s)
            if len(self._known) > _MAX_PAIRS:
                self._known.popitem(last=False)


def when_done(future: "Future[Verdict]", what: Callable[[Verdict], Out]) -> "Future[Out]":
    """A future of something made from a verdict; it fails as the verdict's does."""
    made: Future[Out] = Future()

    def pass_on(done: "Future[Verdict]") -> None:
        try:
            made.set_result(what(done.result()))
        except BaseException as error:
            made.set_exception(error)

    future.add_done_callback(pass_on)
    return made
