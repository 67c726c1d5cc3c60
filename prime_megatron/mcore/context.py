"""This context-parallel rank's part of a packed micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.types import PackedSequences


@dataclass(frozen=True)
class LocalTokens:
    """What one rank feeds to the model. P tokens in the micro-batch, P' = P / context size here."""

    packed: PackedSequences
    """The whole micro-batch."""
    tokens_1T: Tensor  # int64 [1, P']
    positions_1T: Tensor  # int64 [1, P']
    cu_seqlens: Tensor  # int32, of the whole micro-batch (Megatron divides by the context size itself)
    max_length: int
    rows: Tensor
    """Local positions whose next token is a response token, int64."""
    targets: Tensor
    """That next token's id, int64."""
    slots: Tensor
    """That next token's index in the micro-batch, int64."""


def localize(packed: PackedSequences, *, context_size: int, context_rank: int, device: torch.device) -> LocalTokens:
    """Cut a micro-batch for one context rank and find the positions that predict a response token.

    Megatron's packed convention: each sequence (a multiple of 2 * context_size long) is cut into
    2 * context_size chunks and rank r holds chunks r and 2 * context_size - 1 - r.
    """
    total = packed.tokens_P.numel()
    index = torch.arange(total)
    if context_size > 1:
        index = torch.cat(
            [
                index[start + chunk * size : start + (chunk + 1) * size]
                for start, size in _chunks(packed.cu_seqlens.tolist(), 2 * context_size)
                for chunk in (context_rank, 2 * context_size - 1 - context_rank)
            ]
        )
    predicts = torch.zeros(total, dtype=torch.bool)
    predicts[:-1] = packed.response_mask_P[1:] & (packed.positions_P[1:] > 0)
    rows = torch.nonzero(predicts[index]).flatten()
    slots = index[rows] + 1
    lengths = packed.cu_seqlens[1:] - packed.cu_seqlens[:-1]
    return LocalTokens(
        packed=packed,
        tokens_1T=packed.tokens_P[index].unsqueeze(0).to(device),
        positions_1T=packed.positions_P[index].unsqueeze(0).to(device),
        cu_seqlens=packed.cu_seqlens.to(device=device, dtype=torch.int32),
        max_length=int(lengths.max()),
        rows=rows.to(device),
        targets=packed.tokens_P[slots].to(device),
        slots=slots.to(device),
    )


def _chunks(bounds: list[int], parts: int) -> list[tuple[int, int]]:
    """(start, chunk length) of every sequence."""
    for start, end in zip(bounds, bounds[1:], strict=False):
        assert (end - start) % parts == 0, f"a sequence of {end - start} tokens cannot be cut into {parts} chunks"
    return [(start, (end - start) // parts) for start, end in zip(bounds, bounds[1:], strict=False)]
