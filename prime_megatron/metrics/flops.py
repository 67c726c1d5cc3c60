"""Model FLOPs and the peak to hold them against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch


def model_flops(
    *,
    num_matmul_params: int,
    num_layers: int,
    attention_width: int,
    lengths: Sequence[int],
    num_forward: int,
    num_backward: int,
) -> float:
    """Floating-point operations that the model's definition asks for; recomputation does not count.

    A forward costs 2 per matrix parameter and token, and 2 * attention_width * L^2 per layer for causal attention
    over a sequence of L tokens (scores and values, 2 * L^2 * width each, half of it masked). A backward costs two
    forwards. Kaplan et al. 2020 (arXiv 2001.08361, table 1), with the causal half of attention as in
    FlashAttention-2's count (arXiv 2307.08691, section 4.1).

    Args:
        num_matmul_params: parameters that multiply every token: all but the embedding lookup, the output head
            included (once, tied or not); of a mixture of experts only the active ones.
        num_layers: layers with attention.
        attention_width: query heads * head size.
        lengths: tokens of each sequence, over all data-parallel ranks.
        num_forward: forwards (a training pass counts 1 here and 1 in num_backward).
        num_backward: backwards.
    """
    forward = 2.0 * num_matmul_params * sum(lengths)
    forward += 2.0 * num_layers * attention_width * sum(length * length for length in lengths)
    return forward * (num_forward + 2 * num_backward)


def measure_peak_flops(
    synchronize: Callable[[], None], device: torch.device, dtype: torch.dtype, *, size: int, repeats: int
) -> float:
    """Best FLOP/s of a size x size matrix product on this device, out of `repeats` after one warm-up.

    Utilisation is held against this measured peak and not against a data sheet, so that it means the same on a CPU
    and on a GPU: the share of what plain matrix products reach on this very device and thread count. Operands are
    random: a GPU at its power limit multiplies ones faster (866 against 790 TFLOP/s on an H200).
    """
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=draw) for _ in range(2))
    torch.mm(a, b)
    best_s = float("inf")
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize()
        best_s = min(best_s, time.perf_counter() - start)
    return 2.0 * size**3 / best_s
