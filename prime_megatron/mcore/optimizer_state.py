"""Where a role's optimizer state lies in host memory, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prime_megatron.mcore.storages import Block, aligned, parameters

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter."""


class OptimizerState:
    """Main weights of their own and Adam's moments of every optimizer parameter of this rank.

    Args:
        chunks: the role's model chunks, wrapped or not, on the device.
        optimizer: megatron's optimizer; None for a frozen role.
    """

    def __init__(self, chunks: Sequence[Any], optimizer: Any | None) -> None:
        self._slots = _slots(chunks, optimizer)

    @property
    def nbytes(self) -> int:
        """Host memory that all of it takes, with room for moments that are still to come."""
        return sum(slot.nbytes for slot in self._slots.values())

    def all(self) -> list[Block]:
        """`blocks` of every parameter."""
        return self.blocks(self._slots)

    def pieces(self, part: Any, limit: int) -> list[list[Tensor]]:
        """A part's optimizer parameters in order, in pieces whose state has at most ``limit`` bytes, or of one alone.

        At least one piece, which may be empty: a rank may hold no parameter of its own.
        """
        pieces: list[list[Tensor]] = [[]]
        size = 0
        for group in part.optimizer.param_groups:
            for param in group["params"]:
                nbytes = self._slots[param].nbytes
                if pieces[-1] and size + nbytes > limit:
                    pieces.append([])
                    size = 0
                pieces[-1].append(param)
                size += nbytes
        return pieces

    def blocks(self, params: Iterable[Tensor]) -> list[Block]:
        """Main weights of their own and Adam's moments, as far as there are any, of these optimizer parameters."""
        found = []
        for param in params:
            slot = self._slots[param]
            start = slot.start
            if slot.main:
                found.append(Block(param.untyped_storage(), start, slot.main))
                start += aligned(slot.main)
            for moment in self._moments(param).values():
                found.append(Block(moment.untyped_storage(), start, moment.numel() * moment.element_size()))
                start += aligned(slot.moment)
        return found

    def separate(self) -> None:
        """A loaded moment may share its storage with others: give it one of its own."""
        for param, slot in self._slots.items():
            for name, moment in self._moments(param).items():
                if moment.untyped_storage().nbytes() != moment.numel() * moment.element_size():
                    slot.inner.state[param][name] = moment.clone()

    def _moments(self, param: Tensor) -> dict[str, Tensor]:
        """Adam's moments of an optimizer parameter; none before its first update."""
        inner = self._slots[param].inner
        if param not in inner.state:  # a look-up would make an empty state, which Megatron takes for a real one
            return {}
        return {name: inner.state[param][name] for name in MOMENTS if name in inner.state[param]}


@dataclass(frozen=True)
class _Slot:
    """Where an optimizer parameter's state lies in the host region, moments that are still to come included."""

    start: int
    main: int
    """Bytes of a main weight that is not the model's own weight; 0: there is none."""
    moment: int
    """Bytes of one of Adam's moments, float32."""
    inner: Any
    """torch's optimizer (apex's, Transformer Engine's), which has them."""

    @property
    def nbytes(self) -> int:
        return aligned(self.main) + len(MOMENTS) * aligned(self.moment)


def _slots(chunks: Sequence[Any], optimizer: Any | None) -> dict[Tensor, _Slot]:
    own = {tensor.untyped_storage()._cdata for tensor in parameters(chunks)}
    slots: dict[Tensor, _Slot] = {}
    start = 0
    for part in () if optimizer is None else optimizer.chained_optimizers:
        for group in [] if part.is_stub_optimizer else part.optimizer.param_groups:
            for param in group["params"]:
                main = 0 if param.untyped_storage()._cdata in own else param.numel() * param.element_size()
                slot = _Slot(start, main, 4 * param.numel(), part.optimizer)
                slots[param] = slot
                start += slot.nbytes
    return slots
