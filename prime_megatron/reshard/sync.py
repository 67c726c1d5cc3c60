"""The policy's weights into the engine after every update, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import as_slices
from prime_megatron.reshard.local import LocalSync, Params
from prime_megatron.types import Bucket

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Target(Protocol):
    """What a sync needs of an engine (see rollout.engine)."""

    def named_targets(self) -> Mapping[str, Tensor] | None: ...

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None: ...

    def wake(self, tags: Collection[str]) -> None: ...


class WeightSync:
    """Publishes the policy to this rank's engine.

    Args:
        engine: where the weights go.
        transport: the plan of this rank.
        params: this rank's current training parameters.
        check_every: compare checksums every n syncs; 0: never.
    """

    def __init__(self, engine: Target, transport: LocalSync, params: Callable[[], Params], check_every: int) -> None:
        self.engine = engine
        self.transport = transport
        self.params = params
        self.check_every = check_every
        self.num_syncs = 0

    def state(self) -> dict[str, int]:
        """The number of syncs, which decides when checksums are compared."""
        return {"num_syncs": self.num_syncs}

    def restore(self, state: dict[str, int]) -> None:
        """Inverse of ``state``; the next sync repeats the last one before the state was taken."""
        self.num_syncs = max(state["num_syncs"] - 1, 0)

    def publish(self, version: int) -> None:
        """Make the engine generate with the current weights, as policy version ``version``. Collective.

        Raises:
            RunError: the engine's weights differ from the trainer's afterwards; the tensor is named.
        """
        targets = self.engine.named_targets()
        assert targets is not None
        params = self.params()
        self.transport.run(params, targets)
        self.engine.update_weights((), version)
        self.num_syncs += 1
        if self.check_every and self.num_syncs % self.check_every == 0:
            self._check(params, targets, version)

    @torch.no_grad()
    def _check(self, params: Params, targets: Mapping[str, Tensor], version: int) -> None:
        """Exact: the sum of the raw bits of every engine tensor against that of the slices it was made of."""
        names = sorted(targets)
        place = {name: index for index, name in enumerate(names)}
        device = next(iter(targets.values())).device
        sent = torch.zeros(len(names), dtype=torch.int64, device=device)
        for copy in self.transport.owned:
            piece = params[copy.chunk, copy.source][as_slices(copy.of)].to(targets[copy.target].dtype)
            sent[place[copy.target]] += bit_sum(piece)
        if self.transport.group is not None:
            dist.all_reduce(sent, group=self.transport.group)
        got = torch.stack([bit_sum(targets[name]) for name in names])
        wrong = [name for name, same in zip(names, (sent == got).tolist(), strict=True) if not same]
        if wrong:
            raise RunError(
                f"weight sync of policy version {version}: {len(wrong)} engine tensors differ from the trainer's, "
                f"the first is {wrong[0]}"
            )


def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's raw bits as integers, modulo 2**64; the order of elements does not matter. int64 scalar."""
    return tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
