"""Prompts drawn in proportion to how much they teach: by their past accuracy p, p (1 - p).

Where all responses to a prompt are alike there is nothing to learn from them: the variance of an outcome of probability
p is p (1 - p). Weights are whole numbers and the draws Python's own, so that every rank and every machine draws alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from prime_megatron.config.rollout import TeachingConfig
from prime_megatron.data.order import Place
from prime_megatron.types import Group

UNKNOWN = 0.5
"""Accuracy of a prompt of which nothing is known: it teaches most."""
UNIT = 2**30
"""Weights are multiples of 1 / UNIT; a million rows stay far below 2**63."""
MISSES = 16
"""Draws in a row that hit rows of this step before those are taken out of the weights."""
_KEPT = ("visits", "step", "accuracy", "known", "alike", "unusable")
"""What a checkpoint has of a row that was drawn."""


class TeachingOrder:
    """Draws rows by what they teach, none twice in a step. P rows.

    Args:
        difficulties: share of wrong attempts that each row comes with, or None.
        config: floor, memory, rest.
        seed: names the draws of every step.
    """

    def __init__(self, difficulties: Sequence[float | None], config: TeachingConfig, *, seed: int) -> None:
        self.difficulties = difficulties
        self.config = config
        self.seed = seed
        self._step = 0
        self._taken: set[int] = set()
        self._random = random.Random()
        self._sums_P: np.ndarray | None = None
        self._forget()

    def _forget(self) -> None:
        """Nothing was drawn yet."""
        count = len(self.difficulties)
        given = [UNKNOWN if value is None else 1.0 - value for value in self.difficulties]
        self._past = {
            "visits": np.zeros(count, dtype=np.int64),
            "step": np.zeros(count, dtype=np.int64),  # of the last visit
            "accuracy": np.array(given, dtype=np.float64),
            "known": np.array([value is not None for value in self.difficulties], dtype=bool),
            "alike": np.zeros(count, dtype=bool),  # the last visit's responses: all right, or all wrong
            "unusable": np.zeros(count, dtype=bool),
        }

    @property
    def settings(self) -> dict[str, int | bool | str]:
        """The seed; config keys are compared as such."""
        return {"seed": self.seed}

    @property
    def epoch(self) -> int:
        """Draws over rows."""
        return int(self._past["visits"].sum()) // len(self.difficulties)

    def begin(self, step: int) -> None:
        """A step asks for its rows: its draws are its own, whatever was drawn before."""
        self._step = step
        self._taken = set()
        self._random = random.Random(f"{self.seed}/teaching/{step}")
        self._sums_P = None

    def next(self) -> Place | None:
        """A row that this step has not had; rows that rest where no other is left, then all anew. None: no row is of
        use."""
        misses = 0
        while (index := self._draw()) in self._taken:
            misses += 1
            if misses == MISSES:
                self._sums_P, misses = None, 0
        if index is None:
            return None
        self._taken.add(index)
        self._past["visits"][index] += 1
        return Place(int(self._past["visits"][index]) - 1, index)

    def skip(self, index: int) -> None:
        """The row is never drawn again."""
        self._past["unusable"][index] = True
        self._sums_P = None

    def observe(self, groups: Sequence[Group]) -> None:
        """Note the mean outcome of each group as its row's accuracy, the earlier one remembered."""
        past, memory = self._past, self.config.memory
        for group in groups:
            index = int(group.prompt.uid.rpartition("-")[2])
            mean = math.fsum(group.outcomes) / len(group.samples)
            old = float(past["accuracy"][index])
            past["accuracy"][index] = memory * old + (1.0 - memory) * mean if past["known"][index] else mean
            past["known"][index] = True
            past["step"][index] = self._step
            past["alike"][index] = set(group.outcomes) in ({0.0}, {1.0})

    def figures(self) -> dict[str, float]:
        """Prompts of known accuracy, their mean accuracy, and those that rest in the next step."""
        known_P = self._past["known"] & ~self._past["unusable"]
        known = self._past["accuracy"][known_P].tolist()
        return {
            "data/known_prompts": float(len(known)),
            "data/past_accuracy": math.fsum(known) / len(known) if known else math.nan,
            "data/resting_prompts": float(self._rests_P(self._step + 1).sum()),
        }

    def state(self) -> dict[str, Any]:
        """What is known of the rows that were drawn."""
        rows_V = np.flatnonzero(self._past["visits"])
        return {"rows": rows_V.tolist()} | {name: self._past[name][rows_V].tolist() for name in _KEPT}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._forget()
        for name in _KEPT:
            self._past[name][state["rows"]] = state[name]

    def _draw(self) -> int | None:
        """A row by its weight, perhaps one that this step has had; None: no row is of use."""
        if self._sums_P is None:
            self._sums_P = self._weights_P().cumsum()
        total = int(self._sums_P[-1])
        if not total:
            return None
        return int(np.searchsorted(self._sums_P, self._random.randrange(total), side="right"))

    def _weights_P(self) -> np.ndarray:
        """int64, multiples of 1 / UNIT."""
        accuracy_P = self._past["accuracy"]
        teaches_P = np.maximum(accuracy_P * (1.0 - accuracy_P), self.config.floor)
        weights_P = np.where(self._past["unusable"], 0, np.rint(UNIT * teaches_P).astype(np.int64))
        free_P = weights_P.copy()
        free_P[list(self._taken)] = 0
        awake_P = np.where(self._rests_P(self._step), 0, free_P)
        if awake_P.any():
            return awake_P
        if free_P.any():
            return free_P
        self._taken = set()
        return weights_P

    def _rests_P(self, step: int) -> np.ndarray:
        """bool, rows that a step leaves out where it can."""
        recent_P = step - self._past["step"] <= self.config.rest_steps
        return self._past["alike"] & recent_P & ~self._past["unusable"]
