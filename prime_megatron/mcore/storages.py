"""The storages behind a model's weights and gradients: what moves between device and host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGN = 64


@dataclass(frozen=True)
class Block:
    """A storage, the bytes that it has on the device, and its address in the host region of its kind."""

    storage: torch.UntypedStorage
    start: int
    nbytes: int


def parameters(chunks: Sequence[Any]) -> Iterator[Tensor]:
    """Megatron's flat buffers of weights first, then every parameter, which may be a view of one."""
    for chunk in chunks:
        for buffer in _ddp_buffers(chunk):
            if buffer.param_data is not None:
                yield buffer.param_data
        for param in chunk.parameters():
            yield param.data


def gradients(chunks: Sequence[Any]) -> Iterator[Tensor]:
    """Megatron's flat buffers of gradients."""
    for chunk in chunks:
        for buffer in _ddp_buffers(chunk):
            yield buffer.grad_data


def total(blocks: Iterable[Block]) -> int:
    """Bytes of the blocks together."""
    return sum(block.nbytes for block in blocks)


def drop(blocks: Iterable[Block]) -> None:
    """Free the device memory behind these storages; they keep their place in every tensor that uses them."""
    for block in blocks:
        block.storage.resize_(0)


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """The storage as uint8 [nbytes]."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _ddp_buffers(chunk: Any) -> list[Any]:
    """Megatron's flat buffers of a DDP-wrapped chunk, experts' included; none of a bare one."""
    return [*chunk.buffers, *chunk.expert_parallel_buffers] if hasattr(chunk, "expert_parallel_buffers") else []


def aligned(nbytes: int) -> int:
    """An address in a host region at or after this one, where a storage may begin."""
    return -(-nbytes // _ALIGN) * _ALIGN
