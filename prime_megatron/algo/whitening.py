"""Unit deviation over the response tokens of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.reduction import Reduction

WHITEN_EPS = 1e-8


def whiten(values_T: Tensor, mask_T: Tensor, reduce: Reduction) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask of all ranks, Bessel-corrected; 0 outside it: [T].

    Two passes, so that the variance does not cancel. A single token overall becomes 0. Calls reduce.sum twice.
    """
    kept_T = torch.where(mask_T, values_T.double(), 0.0)
    count, total = reduce.sum(torch.stack([mask_T.double().sum(), kept_T.sum()]))
    centred_T = torch.where(mask_T, values_T.double() - total / count.clamp(min=1.0), 0.0)
    variance = reduce.sum(centred_T.square().sum()) / (count - 1.0).clamp(min=1.0)
    return (centred_T / (variance + WHITEN_EPS).sqrt()).to(values_T.dtype)
