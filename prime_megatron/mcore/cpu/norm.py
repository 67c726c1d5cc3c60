"""RMSNorm for layer specs without Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 (Zhang and Sennrich, 2019, eq. 4).

    megatron's own WrappedTorchNorm refuses sequence parallelism; here the weight is marked, so that its
    gradient is summed over the tensor-parallel ranks, each of which sees a part of the sequence.
    The rounding order (normalise, cast, then scale) is that of the Hugging Face models.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """With its gradient in closed form: a third of what autograd makes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_fp32 = x.float()
        inverse = x_fp32.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x_fp32 * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x / rms(x) and g the gradient times the weight: (g - n mean(g n)) / rms(x)."""
        x, weight, inverse = ctx.saved_tensors
        grad, normed = grads[0].float(), x.float() * inverse
        to_weight = grad * normed
        shared = (to_weight @ weight.float()).div_(x.shape[-1]).unsqueeze(-1)
        to_x = (grad * weight.float()).sub_(normed.mul_(shared)).mul_(inverse)
        return to_x.to(x.dtype), to_weight.flatten(0, -2).sum(0).to(weight.dtype), None
