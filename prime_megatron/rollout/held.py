"""An engine whose end waits until all ranks can hear of it.

An engine ends on the ranks of its replica alone, perhaps in the middle of a weight sync in which others wait for their
parts. From then on this one takes part in everything and does nothing; the next generation says why, where all ranks
meet (``rollout.generate``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import Tensor

from prime_megatron.errors import PeerLost, RunError
from prime_megatron.rollout.engine import Completion, Engine, Request
from prime_megatron.types import Bucket


class HeldEngine:
    """See the module.

    Args:
        engine: does the work until it is gone for good: RunError from any call.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.replica, self.num_replicas = engine.replica, engine.num_replicas
        self.gone: str | None = None
        """Why there is no engine any more."""
        self._version = -1
        """What the trainer last sent to an engine that is gone."""

    @property
    def num_restarts(self) -> int:
        """See `Engine.num_restarts`."""
        return self.engine.num_restarts

    @property
    def version(self) -> int:
        """See `Engine.version`; that of the last update where the engine is gone: nobody is to send it again."""
        return self.engine.version if self.gone is None else self._version

    def named_targets(self) -> Mapping[str, Tensor] | None:
        """See `Engine.named_targets`."""
        return self.engine.named_targets()

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`.

        Raises:
            RunError: the engine is gone, whenever that was.
        """
        made: list[Completion] = []
        self._try(lambda: made.extend(self.engine.generate(requests, on_finished)))
        if self.gone is not None:
            raise RunError(self.gone)
        return made

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        """See `Engine.update_weights`; making a bucket is collective, so all of them are taken in any case."""
        self._version = version
        rest = iter(buckets)
        self._try(lambda: self.engine.update_weights(rest, version))
        for _ in rest:
            pass

    def sleep(self, level: int) -> None:
        """See `Engine.sleep`."""
        self._try(lambda: self.engine.sleep(level))

    def wake(self, tags: Collection[str]) -> None:
        """See `Engine.wake`."""
        self._try(lambda: self.engine.wake(tags))

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()

    def give_up(self, why: str) -> None:
        """The engine is of no use any more, although it may live."""
        self.gone = self.gone or why

    def _try(self, action: Callable[[], None]) -> None:
        if self.gone is not None:
            return
        try:
            action()
        except PeerLost:
            raise
        except RunError as error:
            self.give_up(str(error))
