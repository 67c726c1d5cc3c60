"""Megatron's parallel linear layers on a CPU in float32: the input's gradient by oneDNN instead of MKL.

PyTorch gives float32 products to MKL, which reaches 54 to 64 GFLOP/s on one Zen 4 core where oneDNN reaches 79 to 96
(hidden 128 to 1024, 2,560 tokens). The forward stays with MKL all the same: so it rounds as transformers does, to the
last bit at tensor size 1, and activations of 20,000 (attention sinks) magnify every other rounding to 2e-4 in the
logits. The weight's gradient stays with MKL, too (oneDNN is slower at it), and goes straight into Megatron's main
gradient. Elsewhere, and for weights too small to gain, the layers are Megatron's own.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from prime_megatron.kernels.logprob_chunks import has_main_grad, weight_grad_out

MIN_WEIGHTS = 128 * 128
"""Smaller weights gain nothing."""


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradient goes to oneDNN: through the operation that torch.compile emits for a product."""
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and weight.numel() >= MIN_WEIGHTS
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: [..., K], [N, K] -> [..., N]; float32 on a CPU, without gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.with_bias = bias is not None
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        rows, x_rows = grad.flatten(0, -2), x.flatten(0, -2)
        return (
            product(grad, weight.t()),
            _weight_grad(weight, rows, x_rows),
            rows.sum(0) if ctx.with_bias else None,
        )


def _weight_grad(weight: Tensor, grad_TN: Tensor, x_TK: Tensor) -> Tensor | None:
    if not has_main_grad(weight) or weight.main_grad.dtype is not torch.float32:
        return grad_TN.t() @ x_TK
    weight.main_grad.addmm_(grad_TN.t(), x_TK)
    return weight_grad_out(weight, None, None)


class _OneDnn:
    """The product of a layer; what Megatron does around it (gathering, reducing) happens around it here, too."""

    def _forward_impl(self, input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        if not uses_onednn(input, weight) or not weight.requires_grad:
            return super()._forward_impl(input, weight, **options)  # type: ignore[misc]
        if options["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(input, group=options["tp_group"])
        elif options["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=options["tp_group"])
        return _Linear.apply(input, weight, options["bias"])


class ColumnLinear(_OneDnn, ColumnParallelLinear):
    """Megatron's ColumnParallelLinear."""


class RowLinear(_OneDnn, RowParallelLinear):
    """Megatron's RowParallelLinear."""
