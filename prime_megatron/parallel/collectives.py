"""Collectives on plain Python values, on bytes, what the first rank does for all, and the algorithm's reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.device import current_device
from prime_megatron.errors import InputError, RunError

T = TypeVar("T")


def gather_all(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, in rank order, on every rank of the group (the world by default)."""
    gathered: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered  # type: ignore[return-value]


def gather_to_first(value: T) -> list[T]:
    """Every rank's value, in rank order, on the first rank of the world; nothing on the others."""
    gathered: list[T | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []  # type: ignore[return-value]


def gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """Every rank's whole numbers, equally many, in rank order, on every rank of the world."""
    mine = torch.tensor(list(numbers), dtype=torch.int64, device=current_device())
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return torch.stack(gathered).tolist()


def gather_bytes(mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Every rank's uint8 tensor, in rank order, on every rank of the world: a broadcast from each that has any.

    Args:
        mine: this rank's, uint8 [sizes[rank]].
        sizes: of all ranks, known to all.
    """
    rank = dist.get_rank()
    assert mine.numel() == sizes[rank], f"{mine.numel()} bytes for {sizes[rank]}"
    parts = [mine if source == rank else mine.new_empty(size) for source, size in enumerate(sizes)]
    pending = [dist.broadcast(part, source, async_op=True) for source, part in enumerate(parts) if part.numel()]
    for work in pending:
        work.wait()
    return parts


def from_rank(value: T, rank: int = 0) -> T:
    """One rank's value on every rank of the world."""
    carrier = [value]
    dist.broadcast_object_list(carrier, rank)
    return carrier[0]


@contextmanager
def on_first_rank(enter: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A context of the first rank's, such as a lock; what it refuses is raised on all. Collective over the world."""
    with ExitStack() as stack:
        agree_on(lambda: stack.enter_context(enter()))
        yield


@contextmanager
def together() -> Iterator[None]:
    """What ends this block with an error on one rank ends it so on all. Collective over the world.

    Only for blocks in which no rank that failed is waited for by the others. An OSError (a full disk) is a RunError.

    Raises:
        RunError, InputError: that of the first rank that met one.
    """
    mine: tuple[type[Exception], str] | None = None
    try:
        yield
    except (RunError, InputError) as error:
        mine = (InputError if isinstance(error, InputError) else RunError, str(error))
    except OSError as error:
        mine = (RunError, str(error))
    raise_first(mine)


def raise_first(mine: tuple[type[Exception], str] | None) -> None:
    """Raise the first rank's error, class and text, on all ranks; nothing where none has any. Collective."""
    first = next((error for error in gather_all(mine) if error is not None), None)
    if first is not None:
        kind, text = first
        raise kind(text)


def agree_on(action: Callable[[], None]) -> None:
    """Run an action of the first rank's; what it refuses is raised on all. Collective over the world.

    Raises:
        InputError: as the action.
    """
    refusal = None
    if dist.get_rank() == 0:
        try:
            action()
        except InputError as error:
            refusal = str(error)
    refusal = from_rank(refusal)
    if refusal is not None:
        raise InputError(refusal)


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
