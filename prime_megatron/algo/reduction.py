"""Reductions over the data-parallel ranks, as a value that is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Element-wise reductions over the data-parallel ranks.

    Every rank must call the same methods in the same order with the same shapes, a rank without sequences too.
    """

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, a new tensor; the argument is left alone."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, a new tensor; the argument is left alone."""
        ...


@dataclass(frozen=True)
class Local:
    """The reduction of a single rank: identity."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def max(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


LOCAL = Local()
