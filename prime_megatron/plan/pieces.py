"""Bytes of an optimizer step whose state comes piece by piece (parallel.offload phases)."""

from __future__ import annotations

from prime_megatron.config.model import PIECE_BYTES
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.megatron_layout import padded_vocab
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.roles import STEP_BYTES, RoleMemory


def pieces_on_device(memory: RoleMemory, family: FamilyConfig, sizes: ParallelSizes, stage: int) -> float:
    """Two pieces of the state, one that is computed and one that moves, and the temporaries of one.

    A piece has PIECE_BYTES, or the state of the stage's largest parameter where that is more: embedding or output
    layer, which a distributed optimizer may cut, but need not.
    """
    if not memory.optimizer:
        return 0.0
    rows = 2 * (family.expert_ffn if family.experts else family.ffn) / sizes.tensor
    if stage in (0, sizes.pipeline - 1):
        rows = max(rows, padded_vocab(family.vocab, sizes.tensor) / sizes.tensor)
    stepped = memory.step / STEP_BYTES  # parameters whose state is this rank's
    each = memory.optimizer / stepped
    piece = min(memory.optimizer, max(float(PIECE_BYTES), rows * family.hidden * each))
    return 2 * piece + piece / each * STEP_BYTES
