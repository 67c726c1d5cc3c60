"""Packed sequences as our attention reads them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams

from prime_megatron.mcore.cpu.rotary import Rotary


@dataclass
class Packed(PackedSeqParams):
    """Megatron's description of packed sequences, and their lengths as numbers (no device sync).

    Lengths count padding, and are those of the whole sequences under context parallelism. max_seqlen must be
    exactly the longest: where it happens to equal the total of several sequences, upstream's rotary embedding
    takes it for a table of absolute positions.
    """

    lengths: tuple[int, ...] = ()
    rotary: Rotary | None = None
    """Of this rank's tokens, where our attention turns queries and keys (``HiddenStatesModel``)."""
