"""The policy's weights into the engine after every update, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from prime_megatron.errors import RunError
from prime_megatron.weights.slices import Params


class Reshard(Protocol):
    """From training shards to what the engine takes: in_place.InPlaceReshard, by_bucket.BucketReshard."""

    def send(self, engine: Any, params: Params, version: int) -> None:
        """Give the engine the current parameters as policy version ``version``. Collective over the block."""
        ...

    def differing(self, engine: Any, params: Params) -> list[str]:
        """Engine tensors that are not the current parameters to the last bit, as far as they can be reached."""
        ...


class WeightSync:
    """Publishes the policy to this rank's engine.

    Args:
        engine: where the weights go.
        reshard: this rank's part of it.
        params: this rank's current training parameters.
        check_every: compare the engine's weights with the trainer's every n syncs; 0: never.
    """

    def __init__(self, engine: Any, reshard: Reshard, params: Callable[[], Params], check_every: int) -> None:
        self.engine = engine
        self.reshard = reshard
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
            RunError: the engine's weights differ from the trainer's afterwards, on any rank of the block; the tensor
                is named.
        """
        params = self.params()
        self.reshard.send(self.engine, params, version)
        self.num_syncs += 1
        if self.check_every and self.num_syncs % self.check_every == 0:
            wrong = self.reshard.differing(self.engine, params)
            if wrong:
                raise RunError(
                    f"weight sync of policy version {version}: {len(wrong)} engine tensors differ from the trainer's, "
                    f"the first is {wrong[0]}"
                )
