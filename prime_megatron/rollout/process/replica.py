"""A rank's part in the engine replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from prime_megatron.errors import InputError, PeerLost, RunError, StopRequested
from prime_megatron.rollout.engine import WeightsLost

T = TypeVar("T")
_ERRORS: dict[str, type[Exception]] = {
    "input": InputError,
    "failed": RunError,
    "lost": WeightsLost,
    "stop": StopRequested,
}


@dataclass(frozen=True)
class Member:
    """This rank's part in the replicas."""

    replica: int
    num_replicas: int
    tensor_rank: int
    """0 on the leader."""
    leader: int
    """Its global rank."""
    group: dist.ProcessGroup | None
    """The replica's ranks; None for one rank."""

    def agree(self, action: Callable[[], T]) -> T:
        """The result of the leader's action, or its error, on every rank of the replica. Collective over it."""
        outcome: tuple[str, Any] = ("", None)
        if self.tensor_rank == 0:
            try:
                outcome = ("", action())
            except tuple(_ERRORS.values()) as error:
                kind = next(kind for kind, error_type in _ERRORS.items() if isinstance(error, error_type))
                outcome = (kind, str(error))
        if self.group is not None:
            carrier = [outcome]
            try:
                dist.broadcast_object_list(carrier, self.leader, group=self.group)
            except RuntimeError as error:
                raise PeerLost(
                    f"rollout engine {self.replica}: no word from rank {self.leader}, which speaks to it, or from "
                    f"another of its ranks: {str(error).splitlines()[0]}"
                ) from None
            outcome = carrier[0]
        kind, value = outcome
        if kind:
            raise _ERRORS[kind](value)
        result: T = value
        return result
