"""Exact comparison of weights: bit by bit where both are at hand, by fingerprint where they are on two ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**22
"""Elements compared at once, so that a check needs little memory."""
_COLUMNS = 2**40
"""Columns are counted from here, so that row i and column j do not weigh what row j and column i do."""
_MIX = -7046029254386353131
"""2**64 divided by the golden ratio, as a signed integer."""


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Whether ``a`` cast to b's dtype is b to the last bit (so NaN equals the same NaN); bool scalar."""
    flags = [(_bits(x.to(y.dtype)) == _bits(y)).all() for x, y in zip(_chunks(a), _chunks(b), strict=True)]
    return torch.stack(flags).all()


def fingerprint(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over elements of bits x weight of the place, modulo 2**64, of the tensor cast to ``dtype``; int64 scalar.

    Any one changed element and any two exchanged ones change it.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    columns = _weights(_COLUMNS, _COLUMNS + tensor.shape[1], tensor.device) if tensor.dim() == 2 else None
    start = 0
    for chunk in _chunks(tensor):
        rows = _weights(start, start + chunk.shape[0], tensor.device)
        values = _bits(chunk.to(dtype)).to(torch.int64)
        if columns is not None:
            values = values.mul_(columns).sum(dim=1)
        total += (values * rows).sum()
        start += chunk.shape[0]
    return total


def _weights(start: int, stop: int, device: torch.device) -> Tensor:
    """Odd pseudo-random integers for places start to stop: odd, so that no changed bit is multiplied away."""
    places = torch.arange(start + 1, stop + 1, dtype=torch.int64, device=device) * _MIX
    return (places ^ (places >> 29)) | 1


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    rows = max(1, _CHUNK // max(1, tensor[0].numel()))
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.element_size()])
