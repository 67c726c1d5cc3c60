"""Collectives on plain Python values."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

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
