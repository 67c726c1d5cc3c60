"""This context-parallel rank's part of a packed micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prime_megatron.types import PackedSequences


@dataclass(frozen=True)
class LocalTokens:
    """What one rank feeds to the model. S tokens in the micro-batch, S' = S / context size here."""

    packed: PackedSequences
    """The whole micro-batch."""
    tokens_1T: Tensor  # int64 [1, S']
    positions_1T: Tensor  # int64 [1, S']
    lengths: tuple[int, ...]
    """Tokens of each sequence of the whole micro-batch, padding included."""
    rows: Tensor
    """Local positions whose next token is a response token, int64."""
    targets: Tensor
    """That next token's id, int64."""
    slots: Tensor
    """That next token's index in the micro-batch, int64."""


def localize(packed: PackedSequences, *, context_size: int, context_rank: int) -> LocalTokens:
    """Cut a micro-batch for one context rank and find the positions that predict a response token.

    Megatron's packed convention: each sequence (a multiple of 2 * context_size long) is cut into
    2 * context_size chunks and rank r holds chunks r and 2 * context_size - 1 - r.
    """
    total = packed.tokens_S.numel()
    device = packed.tokens_S.device
    index = torch.arange(total, device=device)
    bounds = packed.cu_seqlens.tolist()
    if context_size > 1:
        index = torch.cat(
            [
                index[start + chunk * size : start + (chunk + 1) * size]
                for start, size in _chunks(bounds, 2 * context_size)
                for chunk in (context_rank, 2 * context_size - 1 - context_rank)
            ]
        )
    predicts = torch.zeros(total, dtype=torch.bool, device=device)
    predicts[:-1] = packed.response_mask_S[1:] & (packed.positions_S[1:] > 0)
    rows = torch.nonzero(predicts[index]).flatten()
    slots = index[rows] + 1
    return LocalTokens(
        packed=packed,
        tokens_1T=packed.tokens_S[index].unsqueeze(0),
        positions_1T=packed.positions_S[index].unsqueeze(0),
        lengths=tuple(stop - start for start, stop in pairwise(bounds)),
        rows=rows,
        targets=packed.tokens_S[slots],
        slots=slots,
    )


def _chunks(bounds: list[int], parts: int) -> list[tuple[int, int]]:
    """(start, chunk length) of every sequence."""
    spans = list(pairwise(bounds))
    assert all((end - start) % parts == 0 for start, end in spans), f"sequences {bounds} cannot be cut into {parts}"
    return [(start, (end - start) // parts) for start, end in spans]
