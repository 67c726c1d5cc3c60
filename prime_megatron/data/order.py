"""Which row comes next: file order or a shuffle of every epoch, resumable to the row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prime_megatron.types import Group


@dataclass(frozen=True)
class Place:
    """A row that is due."""

    visit: int
    """How often the row has been due before."""
    index: int
    """In the data."""


class Order(Protocol):
    """A sequence of rows that every rank computes alike."""

    @property
    def settings(self) -> dict[str, int | bool | str]:
        """What a run may not change when it goes on."""
        ...

    @property
    def epoch(self) -> int:
        """Passes over the data that are over."""
        ...

    def begin(self, step: int) -> None:
        """A step asks for its rows."""
        ...

    def next(self) -> Place | None:
        """The next row; None: there is no other."""
        ...

    def skip(self, index: int) -> None:
        """The row cannot be used."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """What came of rows of this step."""
        ...

    def figures(self) -> dict[str, float]:
        """Metrics of the order's own."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        ...


class EpochOrder:
    """Every row once an epoch.

    Args:
        num_rows: of the data.
        seed: of the order.
        shuffle: a new order every epoch; false: file order.
        epochs: the order ends after so many; 0: never.
    """

    def __init__(self, num_rows: int, *, seed: int, shuffle: bool, epochs: int = 0) -> None:
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self._epochs = epochs
        self._epoch = 0
        self._position = 0
        self._order = self._permutation(0)

    @property
    def settings(self) -> dict[str, int | bool | str]:
        """Seed and shuffle."""
        return {"seed": self._seed, "shuffle": self._shuffle}

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._epoch

    def begin(self, step: int) -> None:
        """Steps make no difference."""

    def next(self) -> Place | None:
        """The next row; goes on into the next epoch where one ends."""
        if self._position == self._num_rows:
            if self._epoch + 1 == self._epochs:
                return None
            self._epoch += 1
            self._position = 0
            self._order = self._permutation(self._epoch)
        self._position += 1
        return Place(self._epoch, self._order[self._position - 1])

    def skip(self, index: int) -> None:
        """The row is due again in every epoch."""

    def observe(self, groups: Sequence[Group]) -> None:
        """What becomes of a row makes no difference."""

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    def state(self) -> dict[str, Any]:
        """Epoch and position."""
        return {"epoch": self._epoch, "position": self._position}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._order = self._permutation(self._epoch)

    def _permutation(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(self._num_rows)
        order = list(range(self._num_rows))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order
