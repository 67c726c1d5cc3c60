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
        x_fp32 = x.float()
        variance = x_fp32.pow(2).mean(-1, keepdim=True)
        return self.weight * (x_fp32 * torch.rsqrt(variance + self.eps)).to(x.dtype)
