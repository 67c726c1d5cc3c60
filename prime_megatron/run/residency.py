"""Who of the models is on the device: parallel.offload, carried out. Every move is this rank's own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from prime_megatron import device
from prime_megatron.config import Offload
from prime_megatron.mcore.offload import GRADIENTS, KINDS, OPTIMIZER, PARAMETERS
from prime_megatron.metrics.memory import Memory
from prime_megatron.step.works import Work, following


class MovableMemory(Memory, Protocol):
    """What a model holds, and its ways (see ``mcore.offload.HostCopy``)."""

    def send(self, kinds: Collection[str]) -> int: ...

    def bring(self, kinds: Collection[str]) -> int: ...

    def settle(self) -> None: ...

    def take_stepped(self) -> tuple[int, int]: ...


class Movable(Protocol):
    """A model with a name whose memory moves."""

    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> MovableMemory: ...


class Residency:
    """Moves models, so that what is to work is on the device and what is not is away.

    none: nothing moves. generation: all of every model is on the device in training, nothing while the engine
    generates. phases: of the model that works its weights, and its gradients while it learns (its optimizer's state
    comes by itself, piece by piece); of the one that works next its weights, which arrive meanwhile; nothing else.

    Args:
        mode: parallel.offload.
        models: every model once.
        order: the step's works.
    """

    def __init__(self, mode: Offload, models: Sequence[Movable], order: tuple[Work, ...]) -> None:
        self.mode = mode
        self.models = tuple(models)
        self.order = order
        self._moves: list[tuple[str, str, int]] = []

    @property
    def moves(self) -> bool:
        """Whether models leave for generation."""
        return self.mode is not Offload.none

    @property
    def by_phase(self) -> bool:
        """Whether they leave for each other, too."""
        return self.mode is Offload.phases

    def reads(self, model: Movable, beside: Movable | None = None) -> None:
        """The model's weights are read next, and ``beside``'s with them."""
        upcoming = self._following(model, learns=False) if beside is None else beside
        self._enter(model, (PARAMETERS,), upcoming)

    def learns(self, model: Movable) -> None:
        """The model is updated next."""
        self._enter(model, (PARAMETERS, GRADIENTS), self._following(model, learns=True))

    def publishes(self, model: Movable) -> None:
        """The engine takes the model's weights next: nothing else of any model stays."""
        if not self.moves:
            return
        self._leave(model, (PARAMETERS,))
        self._bring(model, (PARAMETERS,))
        self._settle()

    def leave(self) -> None:
        """Generation is next: nothing of any model stays."""
        if not self.moves:
            return
        self._leave(None, ())
        self._settle()

    def come_back(self) -> None:
        """Generation is over: what is on the device throughout training comes back."""
        if self.moves and not self.by_phase:
            for model in self.models:
                self._bring(model, KINDS)

    @contextmanager
    def whole(self, model: Movable) -> Iterator[None]:
        """Within the block the model's weights and optimizer state are on the device, to be saved or loaded."""
        if self.by_phase:
            self._leave(model, (PARAMETERS, OPTIMIZER))
            self._bring(model, (PARAMETERS, OPTIMIZER))
        yield
        if self.by_phase:
            self._leave(None, ())

    def take_moves(self) -> dict[str, float]:
        """Bytes copied by moves since the last call, in their order: moves/<number>_<role>_to_<place>_bytes; by the
        steps of an optimizer whose state is away <number>_<role>_optimizer_to_<place>_bytes, after the update."""
        moves, self._moves = self._moves, []
        return {
            f"moves/{number:03}_{role}_to_{place}_bytes": float(size)
            for number, (role, place, size) in enumerate(moves, start=1)
        }

    def _enter(self, model: Movable, kinds: Collection[str], upcoming: Movable | None) -> None:
        if not self.by_phase:
            return
        self._leave(model, kinds, upcoming)
        self._bring(model, kinds)
        if upcoming is not None:
            self._bring(upcoming, (PARAMETERS,))

    def _following(self, model: Movable, *, learns: bool) -> Movable | None:
        """The model that works next in the step; works that are not of every step (a measurement) have none."""
        for index, work in enumerate(self.order):
            if (work.role, work.learns) == (model.name, learns):
                name = following(self.order, index)
                return next((other for other in self.models if other.name == name), None)
        return None

    def _leave(self, model: Movable | None, kinds: Collection[str], upcoming: Movable | None = None) -> None:
        """Send away all but these kinds of the model, and the weights of the upcoming one."""
        for other in self.models:
            for place, size in zip(("device", "host"), other.memory.take_stepped(), strict=True):
                if size:
                    self._moves.append((f"{other.name}_optimizer", place, size))
            kept = kinds if other is model else (PARAMETERS,) if other is upcoming else ()
            if size := other.memory.send([kind for kind in KINDS if kind not in kept]):
                self._moves.append((other.name, "host", size))

    def _bring(self, model: Movable, kinds: Collection[str]) -> None:
        if size := model.memory.bring(kinds):
            self._moves.append((model.name, "device", size))

    def _settle(self) -> None:
        """Another process takes the device's memory next: what was freed goes back to the driver."""
        for model in self.models:
            model.memory.settle()
        device.empty_cache()
        device.trim_heap()
