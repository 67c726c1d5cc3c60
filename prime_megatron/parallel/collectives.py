"""Collectives on plain Python values, and the reductions over data-parallel ranks that the algorithm asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather_all(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, in rank order, on every rank of the group (the world by default)."""
    gathered: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered  # type: ignore[return-value]


def from_rank(value: T, rank: int = 0) -> T:
    """One rank's value on every rank of the world."""
    carrier = [value]
    dist.broadcast_object_list(carrier, rank)
    return carrier[0]


@dataclass(frozen=True)
class OverRanks:
    """Element-wise reductions over a group, as ``algo.reduction.Reduction`` asks for."""

    group: dist.ProcessGroup

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, a new tensor."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over the ranks, a new tensor."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        result = tensor.clone()
        dist.all_reduce(result, op=op, group=self.group)
        return result
