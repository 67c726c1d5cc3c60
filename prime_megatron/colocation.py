"""Training and generation on the same devices: who has the memory when, and how much of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from prime_megatron import device

WEIGHTS, KV_CACHE = "weights", "kv_cache"


class Sleeper(Protocol):
    """What is needed of an engine (see rollout.engine)."""

    def sleep(self, level: int) -> None: ...

    def wake(self, tags: Collection[str]) -> None: ...


class Publisher(Protocol):
    """What is needed of a weight sync (see reshard.sync)."""

    def publish(self, version: int) -> None: ...


class Colocation:
    """The order around generation: weights wake, sync, KV cache wakes, generate, all sleeps. Collective.

    The KV cache wakes last, so that weights in training layout and cache are never both at their largest.

    Args:
        engine: shares the devices with training.
        sync: brings it the policy's weights.
    """

    def __init__(self, engine: Sleeper, sync: Publisher) -> None:
        self.engine = engine
        self.sync = sync
        # Every sleep is followed by a sync, so a GPU's copy can be forgotten; a CPU's is the engine's only one.
        self.level = 2 if device.on_gpu() else 1
        self._edges: dict[str, float] = {}

    def publish(self, version: int) -> None:
        """Wake the engine with the policy's current weights as this version."""
        device.empty_cache()
        self._note("trained")
        self.engine.wake({WEIGHTS})
        self._note("weights_awake")
        self.sync.publish(version)
        device.empty_cache()
        self._note("synced")
        self.engine.wake({KV_CACHE})
        self._note("cache_awake")

    def train(self) -> None:
        """Generation is over: the engine sleeps and training has the memory."""
        self._note("generated")
        self.engine.sleep(self.level)
        self._note("asleep")

    def lap(self) -> dict[str, float]:
        """The edges since the last lap: memory/<edge>_device_bytes (of all processes on this rank's device, GPU only)
        and memory/<edge>_host_bytes (resident, of this process)."""
        edges, self._edges = self._edges, {}
        return edges

    def _note(self, edge: str) -> None:
        self._edges[f"memory/{edge}_host_bytes"] = float(device.host_memory_bytes())
        if device.on_gpu():
            self._edges[f"memory/{edge}_device_bytes"] = float(device.memory_used_bytes())
