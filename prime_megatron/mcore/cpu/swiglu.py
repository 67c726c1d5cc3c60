"""The gated activation of layer specs without Transformer Engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

BLOCK_ELEMENTS = 128 * 1024
"""Of one operand: what a CPU's elementwise passes work on stays in a core's cache."""


class SwiGLU(torch.nn.Module):
    """silu(a) * b of x = [a, b] along the last dimension (Shazeer 2020, without biases).

    megatron's own form adds a constant 0 to b, and autograd of it makes the gradient in parts and puts them together.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return _SwiGLU.apply(x)

    def sharded_state_dict(self, prefix: str = "", *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save; Megatron's MLP asks each of its parts."""
        return {}


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        if x.device.type == "cpu" and x.dtype is torch.float32:
            _gradient_in_blocks(x.flatten(0, -2), grads[0].flatten(0, -2), result.view(-1, x.shape[-1]))
            return result
        gate, up = x.chunk(2, -1)
        to_gate, to_up = result.chunk(2, -1)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=to_gate)
        torch.mul(silu(gate), grads[0], out=to_up)
        return result


def _gradient_in_blocks(x_TF: Tensor, grad_Tf: Tensor, result_TF: Tensor) -> None:
    """The gradient with one power of two per element: torch's silu_backward and silu would take two exponentials, each
    four times as slow. silu'(a) = s + silu(a) (1 - s), s = sigmoid(a)."""
    for gate, up, grad, to_gate, to_up in _blocks(x_TF, grad_Tf, result_TF):
        sigmoid = torch.exp2(gate * -math.log2(math.e)).add_(1.0).reciprocal_()
        activated = gate * sigmoid
        torch.mul(activated, grad, out=to_up)
        slope = torch.addcmul(activated, activated, sigmoid, value=-1.0).add_(sigmoid)
        torch.mul(slope.mul_(grad), up, out=to_gate)


def _blocks(x_TF: Tensor, grad_Tf: Tensor, result_TF: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(a, b, gradient, to the gradient of a, of b) of a few tokens."""
    step = max(1, BLOCK_ELEMENTS // max(grad_Tf.shape[-1], 1))
    for x, grad, result in zip(x_TF.split(step), grad_Tf.split(step), result_TF.split(step), strict=True):
        yield (*x.chunk(2, -1), grad, *result.chunk(2, -1))
