"""Rotary positions for layers without Transformer Engine: a table per micro-batch, two products per tensor and layer.

megatron's own form makes cosines and sines of every token again for the queries and the keys of every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosine and signed sine (-sin, sin) of every token's angles, [T, 1, d] each."""


def rotary_table(positions_T: Tensor, inverse_frequencies: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Rotary:
    """The table of tokens at these positions; inverse_frequencies: float32 [d / 2]; factor: of the attention."""
    angles = torch.outer(positions_T.to(inverse_frequencies.dtype), inverse_frequencies)
    cos, sin = (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
    return torch.cat([cos, cos], -1).unsqueeze(1), torch.cat([-sin, sin], -1).unsqueeze(1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each head's pairs (i, i + d / 2) by the token's angle (Su et al. 2021, eq. 34): [T, heads, d].

    An attention factor in the table multiplies the result."""
    return _Rotate.apply(x, *rotary)


class _Rotate(torch.autograd.Function):
    """x cos + swapped(x) sin; the gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))
