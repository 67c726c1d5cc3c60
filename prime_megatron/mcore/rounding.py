"""How far bfloat16 rounding moves a model's log-probs: the trainer against itself with other roundings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prime_megatron.mcore.model import unwrap

HALF_STEP = 2.0**-8
"""Largest relative error of one rounding to bfloat16."""
_SEED = 20


@contextmanager
def other_roundings(chunks: Sequence[Any]) -> Iterator[None]:
    """Within the block every decoder layer's output is moved by up to one bfloat16 rounding, so that all later
    roundings fall otherwise, as they do in another program of the same model.

    Needs no memory and no second dtype: whatever runs in bfloat16 (packed attention on a GPU, 72 billion parameters
    over many ranks) runs here. Tensor-parallel ranks that hold the same activations move them alike.
    """
    handles = [
        layer.register_forward_hook(_Move(number))
        for chunk in chunks
        for number, layer in enumerate(unwrap(chunk).decoder.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Move:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, layer: Any, args: Any, output: Any) -> Any:
        hidden, *others = output
        return (_moved(hidden, _SEED + self.number), *others)


def _moved(hidden: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(hidden.device).manual_seed(seed)
    draw = torch.rand(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float32)
    return (hidden.float() * (1.0 + HALF_STEP * (2.0 * draw - 1.0))).to(hidden.dtype)
