"""Training and generation on the same devices: who has the memory when, and how much of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from prime_megatron import device
from prime_megatron.errors import PeerLost, RunError
from prime_megatron.metrics.memory import role_bytes
from prime_megatron.run.residency import Movable, Residency

WEIGHTS, KV_CACHE = "weights", "kv_cache"


class Sleeper(Protocol):
    """What is needed of an engine (see rollout.engine, rollout.held)."""

    def sleep(self, level: int) -> None: ...

    def wake(self, tags: Collection[str]) -> None: ...

    def give_up(self, why: str) -> None: ...


class Publisher(Protocol):
    """What is needed of a weight sync (see weights.sync)."""

    def publish(self, version: int) -> None: ...


def sleep_level() -> int:
    """How deep an engine sleeps here (see rollout.engine). Every sleep is followed by a sync, so a GPU's copy of the
    weights can be forgotten; a CPU's is the engine's only one."""
    return 2 if device.on_gpu() else 1


class Colocation:
    """The order around generation. Collective.

    What the sync does not read goes to the host, the engine's weights wake, sync, the policy goes to the host, the KV
    cache wakes; generation; the engine sleeps, the models come back as training needs them. So weights in training
    layout and KV cache are never on the device together. With parallel.offload none the models stay.

    Args:
        engine: shares the devices with training.
        sync: brings it the policy's weights.
        policy: the model that the sync reads.
        residency: moves it and the others.
    """

    def __init__(self, engine: Sleeper, sync: Publisher, policy: Movable, residency: Residency) -> None:
        self.engine = engine
        self.sync = sync
        self.policy = policy
        self.residency = residency
        self.version = -1
        self.level = sleep_level()
        self._readings: dict[str, float] = {}

    def reads(self, model: Movable, beside: Movable | None = None) -> None:
        """The model is to be read next, with ``beside``'s weights where that is given: where models take turns, they
        come and the others leave."""
        self.residency.reads(model, beside)
        if self.residency.by_phase:
            self._note(f"{model.name}_reads")

    def learns(self, model: Movable) -> None:
        """The model is to learn next, as `reads`."""
        self.residency.learns(model)
        if self.residency.by_phase:
            self._note(f"{model.name}_learns")

    def publish(self, version: int) -> None:
        """Wake the engine with the policy's current weights as this version.

        An engine that cannot have them is given up, and the next generation says so, on all ranks."""
        self.version = version
        self._note("updated")
        self.residency.publishes(self.policy)
        device.empty_cache()
        self._note("trained")
        self.engine.wake({WEIGHTS})
        self._note("weights_awake")
        try:
            self.sync.publish(version)
        except PeerLost:
            raise
        except RunError as error:
            self.engine.give_up(str(error))
        self.residency.leave()
        device.empty_cache()
        self._note("synced")
        self.engine.wake({KV_CACHE})
        self._note("cache_awake")

    def sleep_engine(self) -> None:
        """Generation is over: the engine sleeps and training has the memory."""
        self._note("generated")
        self.engine.sleep(self.level)
        self._note("asleep")
        self.residency.come_back()

    def publish_again(self) -> None:
        """The same weights once more: an engine was started anew. The others give their memory back meanwhile."""
        self.sleep_engine()
        self.publish(self.version)

    @contextmanager
    def saving(self, due: bool) -> Iterator[None]:
        """The models on the device while they are saved (when that is due), the engine with its weights afterwards."""
        moved = due and self.residency.moves
        if moved:
            self.sleep_engine()
        yield
        if moved:
            self.publish(self.version)

    def take_readings(self) -> dict[str, float]:
        """What was read at the edges between phases since the last call: memory/<edge>_device_bytes (of all processes
        on this rank's device, GPU only), memory/<edge>_host_bytes (resident, of this process), memory/<edge>/ of every
        model (``role_bytes``) and memory/moves/ (``Residency.take_moves``)."""
        readings, self._readings = self._readings, {}
        return readings | {f"memory/{key}": size for key, size in self.residency.take_moves().items()}

    def _note(self, edge: str) -> None:
        self._readings[f"memory/{edge}_host_bytes"] = float(device.host_memory_bytes())
        if device.on_gpu():
            self._readings[f"memory/{edge}_device_bytes"] = float(device.memory_used_bytes())
        self._readings |= {
            f"memory/{edge}/{key}": float(count) for key, count in role_bytes(self.residency.models).items()
        }
