"""One update of a model on fake ranks, at full size: every forward and backward runs, and what the ranks ask of each
other is written down and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron.algo.losses import NllLoss
from prime_megatron.errors import RunError
from prime_megatron.mcore.context import LocalTokens, localize
from prime_megatron.mcore.fake import FakeRole, fake_rank
from prime_megatron.mcore.fake_calls import Call
from prime_megatron.mcore.head import Head, learn_next, predict_values
from prime_megatron.mcore.model import unwrap
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.rehearse.count import Layout, Subject
from prime_megatron.rehearse.order import disagreement
from prime_megatron.run.models import DTYPES
from prime_megatron.types import PackedSequences

RESPONSE_TOKENS = 64
"""Of a sequence. The vocabulary's head takes them in blocks that fit a CPU's cache, thousands of them for a real
response, and asks its peers for the same things whatever their number."""


@dataclass(frozen=True)
class Traced:
    """An update of some ranks."""

    ranks: tuple[int, ...]
    tokens: int
    """Of a micro-batch."""
    micro_batches: int
    calls: Counter[str]
    """Collectives and messages of all these ranks, by the group that carries them."""


def trace_update(
    subject: Subject, layout: Layout, ranks: Sequence[int], *, tokens: int, longest: int, micro_batches: int
) -> Traced:
    """Run an update of a trained model on these ranks, one after the other.

    Args:
        tokens: of a micro-batch, in sequences of ``longest``.
        micro_batches: with virtual stages a multiple of the pipeline's size.
    Raises:
        RunError: two ranks of a group ask for different things, or one sends what the other does not receive.
    """
    sizes = layout.sizes
    packed = _packed(tokens, longest, 2 * sizes.context * sizes.tensor)
    calls = {rank: _calls(subject, layout, rank, [packed] * micro_batches) for rank in ranks}
    fault = disagreement(calls)
    if fault is not None:
        raise RunError(f"{subject.name} update: {fault}")
    names = Counter(call.group.partition(":")[2] for heard in calls.values() for call in heard)
    return Traced(tuple(ranks), packed.tokens_S.numel(), micro_batches, names)


def few_ranks(sizes: ParallelSizes) -> list[int]:
    """One rank of every pipeline stage, and on the first stage the last one along every other dimension."""
    per_stage = sizes.world // sizes.pipeline
    first = [stage * per_stage for stage in range(sizes.pipeline)]
    places = [sizes.coordinates(rank) for rank in range(per_stage)]
    tensor, context, data = sizes.tensor - 1, sizes.context - 1, sizes.data - 1
    ends = [
        rank
        for rank, at in enumerate(places)
        if (at.tensor, at.context, at.data) in {(tensor, 0, 0), (0, context, 0), (0, 0, data)}
    ]
    return sorted({*first, *ends})


def _calls(subject: Subject, layout: Layout, rank: int, batches: Sequence[PackedSequences]) -> list[Call]:
    sizes, at = layout.sizes, layout.sizes.coordinates(rank)
    # Made once: what is counted in them is real.
    micro = localize(batches[0], context_size=sizes.context, context_rank=at.context)
    weights = torch.ones(int(batches[0].response_mask_S.sum()))
    with fake_rank(layout.parallel, rank, sizes.world) as (topology, answers):
        role = FakeRole(
            subject.family,
            topology,
            layout.parallel,
            DTYPES[layout.dtype],
            trained=True,
            value_head=subject.value_head,
        )

        def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            head = Head(unwrap(role.chunks[-1]), topology, subject.family.vocab, "torch")
            if subject.value_head:
                return predict_values(head, hidden, micro).sum(), {}
            return learn_next(head, hidden, micro, NllLoss(weights), 1.0).loss, {}

        role.update([micro] * len(batches), consume, answers)
        return answers.calls


def _packed(tokens: int, longest: int, unit: int) -> PackedSequences:
    """Sequences of equal length, a multiple of ``unit``, whose last tokens are a response."""
    length = -(-min(longest, tokens) // unit) * unit
    count = max(1, tokens // length)
    places = torch.arange(count * length)
    return PackedSequences(
        tokens_S=torch.zeros(count * length, dtype=torch.int64),
        cu_seqlens=torch.arange(0, count * length + 1, length, dtype=torch.int32),
        positions_S=places % length,
        response_mask_S=places % length >= max(1, length - RESPONSE_TOKENS),
        source_S=places,
        sequence_index=torch.arange(count),
        max_seqlen=length,
    )
