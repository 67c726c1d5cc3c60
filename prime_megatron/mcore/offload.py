"""A role's device memory, moved to host memory and back in flat buffers.

Tensors keep their identity and their views: only the storages behind them are emptied and filled again, so whatever
Megatron, DDP or the optimizer hold on to stays valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron import device

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
KINDS = (PARAMETERS, GRADIENTS, OPTIMIZER)
_ALIGN = 512


@dataclass
class _Block:
    """A storage and its place in the flat buffer of its kind."""

    storage: torch.UntypedStorage
    start: int
    nbytes: int


class HostCopy:
    """Moves the storages of one role; pinned host buffers on CUDA, plain ones on a CPU (real copies there, too).

    The buffers are made at the first move, kept, and made anew only when a kind has grown (Adam's state appears with
    the first update).

    Args:
        chunks: the role's model chunks, wrapped or not.
        optimizer: megatron's optimizer; None for a frozen role.
    """

    def __init__(self, chunks: Sequence[Any], optimizer: Any | None) -> None:
        self.chunks = chunks
        self.optimizer = optimizer
        self._buffers: dict[str, Tensor] = {}
        self._away: dict[str, list[_Block]] = {}
        self._dropped: list[_Block] = []

    @property
    def offloaded(self) -> bool:
        """Whether the role is in host memory."""
        return bool(self._away)

    def device_bytes(self) -> Mapping[str, int]:
        """Bytes on the device by kind: parameters, gradients, optimizer; 0 each while offloaded."""
        if self.offloaded:
            return dict.fromkeys(KINDS, 0)
        return {kind: sum(block.nbytes for block in blocks) for kind, blocks in self._blocks().items()}

    def host_bytes(self) -> Mapping[str, int]:
        """Bytes of the host buffers by kind; they stay allocated while the role is on the device."""
        return {kind: self._buffers[kind].numel() if kind in self._buffers else 0 for kind in KINDS}

    @torch.no_grad()
    def offload(self, *, gradients: bool = True) -> int:
        """Move everything to the host and free the device's memory; returns the bytes copied. No-op when offloaded.

        gradients: False frees them without a copy (they come back as zeros), for where the next update starts anew.
        """
        if self.offloaded:
            return 0
        device.synchronize()
        blocks = self._blocks()
        self._dropped = []
        if not gradients:
            self._dropped, blocks[GRADIENTS] = blocks[GRADIENTS], []
        for kind, listed in blocks.items():
            buffer = self._buffer(kind, _end(listed))
            for block in listed:
                _view(buffer, block).copy_(_bytes_of(block.storage), non_blocking=True)
        device.synchronize()
        self._away = blocks
        for block in (*self._dropped, *(block for listed in blocks.values() for block in listed)):
            block.storage.resize_(0)
        device.empty_cache()
        return sum(block.nbytes for listed in blocks.values() for block in listed)

    @torch.no_grad()
    def onload(self) -> int:
        """Bring everything back; returns the bytes copied. No-op when nothing is offloaded."""
        if not self.offloaded:
            return 0
        copied = 0
        for kind, listed in self._away.items():
            for block in listed:
                block.storage.resize_(block.nbytes)
                _bytes_of(block.storage).copy_(_view(self._buffers[kind], block), non_blocking=True)
                copied += block.nbytes
        for block in self._dropped:
            block.storage.resize_(block.nbytes)
            _bytes_of(block.storage).zero_()
        device.synchronize()
        self._away, self._dropped = {}, []
        return copied

    def _blocks(self) -> dict[str, list[_Block]]:
        """Every storage once, under the first kind that names it (float32 main weights are the parameters' own)."""
        seen: set[int] = set()
        blocks: dict[str, list[_Block]] = {}
        here = device.current_device().type
        for kind, tensors in (
            (PARAMETERS, self._parameters()),
            (GRADIENTS, self._gradients()),
            (OPTIMIZER, self._optimizer_state()),
        ):
            blocks[kind] = []
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage.data_ptr() in seen or storage.nbytes() == 0 or tensor.device.type != here:
                    continue
                seen.add(storage.data_ptr())
                blocks[kind].append(_Block(storage, _end(blocks[kind]), storage.nbytes()))
        return blocks

    def _parameters(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            for buffer in _ddp_buffers(chunk):
                if buffer.param_data is not None:
                    yield buffer.param_data
            for param in chunk.parameters():
                yield param.data

    def _gradients(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            for buffer in _ddp_buffers(chunk):
                yield buffer.grad_data

    def _optimizer_state(self) -> Iterator[Tensor]:
        for part in _parts(self.optimizer):
            if part.is_stub_optimizer:
                continue
            for group in part.optimizer.param_groups:
                for param in group["params"]:
                    yield param.data
            for state in part.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim() > 0)

    def _buffer(self, kind: str, nbytes: int) -> Tensor:
        if kind not in self._buffers or self._buffers[kind].numel() < nbytes:
            self._buffers.pop(kind, None)
            self._buffers[kind] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.on_gpu())
        return self._buffers[kind]


def _parts(optimizer: Any | None) -> Iterable[Any]:
    return () if optimizer is None else optimizer.chained_optimizers


def _ddp_buffers(chunk: Any) -> list[Any]:
    """Megatron's flat buffers of a DDP-wrapped chunk, experts' included; none of a bare one."""
    return [*chunk.buffers, *chunk.expert_parallel_buffers] if hasattr(chunk, "expert_parallel_buffers") else []


def _end(blocks: Sequence[_Block]) -> int:
    return -(-(blocks[-1].start + blocks[-1].nbytes) // _ALIGN) * _ALIGN if blocks else 0


def _view(buffer: Tensor, block: _Block) -> Tensor:
    return buffer[block.start : block.start + block.nbytes]


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
