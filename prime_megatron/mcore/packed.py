"""Packed sequences as the model takes them: padding, context-parallel split, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from prime_megatron.parallel.topology import Topology


@dataclass
class Packed(PackedSeqParams):
    """Megatron's description of packed sequences, and their padded lengths as numbers (no device sync)."""

    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelInput:
    """One micro-batch for this context-parallel rank; P local positions, padding included."""

    tokens_1P: Tensor
    """int64 [1, P]."""
    source_P: Tensor
    """int64 [P]: index of each position's token in the packed batch; -1 for padding."""
    packed: Packed


def pack(tokens_T: Tensor, cu_seqlens: Tensor, topology: Topology, *, sequence_parallel: bool) -> ModelInput:
    """Pads and splits packed tokens for the model.

    tokens_T int64 [T], cu_seqlens int64 [N + 1]; N may be 0 (a dummy sequence stands in, all padding). Each
    sequence is padded to a multiple of 2 x context (nothing to do at context 1), and the last one further, so
    that with sequence parallelism the local length divides by the tensor size. Context rank r holds chunks r
    and 2 x context - 1 - r of each sequence, in this order: Megatron's thd convention. Padding stands after
    its sequence's tokens, where causal attention cannot see it.
    """
    context, rank = topology.sizes.context, topology.at.context
    unit = 2 * context if context > 1 else 1
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist() or [0]
    starts = cu_seqlens[:-1].tolist() or [0]
    padded = [-(-length // unit) * unit for length in lengths]
    block = unit * topology.sizes.tensor if sequence_parallel else unit
    padded[-1] += -sum(padded) % block
    padded[-1] = padded[-1] or block
    sources = []
    for start, length, size in zip(starts, lengths, padded, strict=True):
        source = torch.arange(start, start + size)
        source[length:] = -1
        if context > 1:
            chunks = source.chunk(2 * context)
            source = torch.cat((chunks[rank], chunks[2 * context - 1 - rank]))
        sources.append(source)
    source_P = torch.cat(sources).to(tokens_T.device)
    filler = tokens_T.new_zeros(1)
    tokens = torch.cat((tokens_T, filler))[source_P]
    cu = torch.tensor([0, *torch.tensor(padded).cumsum(0).tolist()], dtype=torch.int32).to(tokens_T.device)
    longest = max(padded)
    packed = Packed(
        qkv_format="thd",
        cu_seqlens_q=cu,
        cu_seqlens_kv=cu,
        cu_seqlens_q_padded=cu,
        cu_seqlens_kv_padded=cu,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=tuple(padded),
    )
    return ModelInput(tokens[None], source_P, packed)
