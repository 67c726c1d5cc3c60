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
    """Local positions that the head reads, int64: those whose next token is a response token (or see
    `localize_beginnings`)."""
    targets: Tensor
    """Id of the token that each speaks of, int64: the next one."""
    slots: Tensor
    """That token's index in the micro-batch, int64."""


def localize(packed: PackedSequences, *, context_size: int, context_rank: int) -> LocalTokens:
    """Cut a micro-batch for one context rank and find the positions that predict a response token.

    Megatron's packed convention: each sequence (a multiple of 2 * context_size long) is cut into
    2 * context_size chunks and rank r holds chunks r and 2 * context_size - 1 - r.
    """
    index = _held(packed, context_size, context_rank)
    rows = torch.nonzero(_predicting(packed)[index]).flatten()
    return _local(packed, index, rows, index[rows] + 1)


def localize_beginnings(packed: PackedSequences, *, context_size: int, context_rank: int) -> LocalTokens:
    """The same, with the positions where a beginning of a response ends: the prompt's last token, which begins it with
    nothing, and every response token. Each speaks of itself: rows and slots are one position."""
    index = _held(packed, context_size, context_rank)
    ends_S = _predicting(packed) | packed.response_mask_S
    rows = torch.nonzero(ends_S[index]).flatten()
    return _local(packed, index, rows, index[rows])


def _held(packed: PackedSequences, context_size: int, context_rank: int) -> Tensor:
    """Positions of the micro-batch that this context rank holds, int64 [S']."""
    index = torch.arange(packed.tokens_S.numel(), device=packed.tokens_S.device)
    if context_size > 1:
        index = torch.cat(
            [
                index[start + chunk * size : start + (chunk + 1) * size]
                for start, size in _chunks(packed.cu_seqlens.tolist(), 2 * context_size)
                for chunk in (context_rank, 2 * context_size - 1 - context_rank)
            ]
        )
    return index


def _predicting(packed: PackedSequences) -> Tensor:
    """Positions whose next token is a response token, bool [S]."""
    predicts_S = torch.zeros_like(packed.response_mask_S)
    predicts_S[:-1] = packed.response_mask_S[1:] & (packed.positions_S[1:] > 0)
    return predicts_S


def _local(packed: PackedSequences, index: Tensor, rows: Tensor, slots: Tensor) -> LocalTokens:
    return LocalTokens(
        packed=packed,
        tokens_1T=packed.tokens_S[index].unsqueeze(0),
        positions_1T=packed.positions_S[index].unsqueeze(0),
        lengths=tuple(stop - start for start, stop in pairwise(packed.cu_seqlens.tolist())),
        rows=rows,
        targets=packed.tokens_S[slots],
        slots=slots,
    )


def _chunks(bounds: list[int], parts: int) -> list[tuple[int, int]]:
    """(start, chunk length) of every sequence."""
    spans = list(pairwise(bounds))
    assert all((end - start) % parts == 0 for start, end in spans), f"sequences {bounds} cannot be cut into {parts}"
    return [(start, (end - start) // parts) for start, end in spans]
