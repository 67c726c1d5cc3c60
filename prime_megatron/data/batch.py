"""Groups to this rank's packed batch, and the batch to micro-batches and back.

Shape legend: T tokens and N sequences of the batch, S tokens of a micro-batch, padding included, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron.data.packing import BatchPlan, plan_batch
from prime_megatron.types import Group, RolloutBatch


def plan_groups(
    groups: Sequence[Group],
    *,
    num_mini_batches: int,
    dp_size: int,
    max_tokens: int | None,
    max_sequences: int | None,
    micro_multiple: int = 1,
) -> BatchPlan:
    """`plan_batch` for the groups of a step (all ranks' groups, the same list on every rank)."""
    return plan_batch(
        [[len(group.prompt.token_ids) + len(sample.token_ids) for sample in group.samples] for group in groups],
        [[len(sample.token_ids) for sample in group.samples] for group in groups],
        num_mini_batches=num_mini_batches,
        dp_size=dp_size,
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        micro_multiple=micro_multiple,
    )


def make_batch(
    groups: Sequence[Group], plan: BatchPlan, dp_rank: int, step_end_table_V: Tensor | None = None
) -> RolloutBatch:
    """This data-parallel rank's part of the step, packed.

    Args:
        groups: the groups of all ranks, as given to the plan.
        plan: where they go.
        dp_rank: this rank.
        step_end_table_V: bool, tokens that close a reasoning step; None: only the last response token does.
    """
    mine = tuple(groups[index] for index in plan.groups_of(dp_rank))
    tokens: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    bounds = [0]
    for group in mine:
        prompt = group.prompt.token_ids
        for sample in group.samples:
            assert prompt and sample.token_ids, f"prompt {group.prompt.uid} has an empty prompt or response"
            assert len(sample.logprobs) == len(sample.token_ids), group.prompt.uid
            tokens += prompt + sample.token_ids
            mask += [False] * len(prompt) + [True] * len(sample.token_ids)
            logprobs += [0.0] * len(prompt) + list(sample.logprobs)
            bounds.append(len(tokens))
    samples = [sample for group in mine for sample in group.samples]
    tokens_T = torch.tensor(tokens, dtype=torch.int64)
    mask_T = torch.tensor(mask, dtype=torch.bool)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int64)
    step_end_T = mask_T & step_end_table_V[tokens_T] if step_end_table_V is not None else torch.zeros_like(mask_T)
    step_end_T[cu_seqlens[1:] - 1] = True
    return RolloutBatch(
        tokens_T=tokens_T,
        cu_seqlens=cu_seqlens,
        response_mask_T=mask_T,
        group_N=torch.tensor([g for g, group in enumerate(mine) for _ in group.samples], dtype=torch.int64),
        outcome_N=torch.tensor([sample.outcome for sample in samples], dtype=torch.float32),
        truncated_N=torch.tensor([sample.finish == "length" for sample in samples], dtype=torch.bool),
        version_N=torch.tensor([sample.version for sample in samples], dtype=torch.int64),
        engine_logprobs_T=torch.tensor(logprobs, dtype=torch.float32),
        step_end_T=step_end_T,
        num_tokens=plan.num_tokens,
        num_sequences=plan.num_sequences,
        groups=mine,
    )


@dataclass(frozen=True)
class PackedSequences:
    """A micro-batch as a model reads it.

    Sequence i owns positions cu_seqlens[i] to cu_seqlens[i + 1]; the first `num_sequences` are real (each perhaps
    with padding after its last token), one more may be a dummy that fills the total up to a multiple. The mask is
    false on all padding. Causal attention never sees the padding after a token.

    Example: sequences [5, 6, 7] and [8, 9] of a batch [5, 6, 7, 8, 9], padded=True, total_multiple=4:
        tokens_S         5 6 7 | 8 9 0 | 0 0
        cu_seqlens       0 3 6 8
        positions_S      0 1 2 | 0 1 2 | 0 1
        source_S         0 1 2 | 3 4 -1 | -1 -1
        real_cu_seqlens  0 3 5
    """

    tokens_S: Tensor  # int64
    cu_seqlens: Tensor  # int32, dummy included
    positions_S: Tensor  # int64, from 0 in each sequence
    response_mask_S: Tensor  # bool
    source_S: Tensor  # int64, index of the token in the batch; -1 on padding
    sequence_index: Tensor  # int64 [num_sequences], indices of the real sequences in the batch
    real_cu_seqlens: Tensor  # int64 [num_sequences + 1], bounds once padding is taken out
    max_seqlen: int

    @property
    def num_sequences(self) -> int:
        """Real sequences."""
        return self.sequence_index.numel()

    @property
    def real_S(self) -> Tensor:
        """bool [S], true on tokens of the batch: `x_S[packed.real_S]` lines up with real_cu_seqlens."""
        return self.source_S >= 0

    def to(self, device: torch.device | str) -> PackedSequences:
        """The same on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


def select(
    batch: RolloutBatch,
    indices: Sequence[int],
    *,
    padded: bool = False,
    sequence_multiple: int = 1,
    total_multiple: int = 1,
    pad_token: int = 0,
) -> PackedSequences:
    """Pack some sequences of the batch.

    Args:
        batch: this rank's batch.
        indices: sequences, in the order wanted; empty: a dummy sequence alone, with an all-false mask.
        padded: pad every sequence to the longest.
        sequence_multiple: pad every sequence to a multiple of this (context parallelism: 2 x its size).
        total_multiple: fill S up to a multiple of this with a dummy sequence (sequence parallelism: tensor size).
        pad_token: id on padding.
    """
    bounds = batch.cu_seqlens.tolist()
    real = [bounds[i + 1] - bounds[i] for i in indices]
    width = max(real) if padded and real else 0
    sizes = [_round_up(max(size, width), sequence_multiple) for size in real]
    total = sum(sizes)
    filled = _round_up(max(total, 1), math.lcm(sequence_multiple, total_multiple))
    device = batch.tokens_T.device
    source = torch.full((filled,), -1, dtype=torch.int64)
    start = 0
    for index, length, size in zip(indices, real, sizes, strict=True):
        source[start : start + length] = torch.arange(bounds[index], bounds[index + 1])
        start += size
    if filled > total:
        sizes.append(filled - total)
    source_S = source.to(device)
    valid_S = source_S >= 0
    tokens_S = torch.full((filled,), pad_token, dtype=torch.int64, device=device)
    tokens_S[valid_S] = batch.tokens_T[source_S[valid_S]]
    mask_S = torch.zeros(filled, dtype=torch.bool, device=device)
    mask_S[valid_S] = batch.response_mask_T[source_S[valid_S]]
    return PackedSequences(
        tokens_S=tokens_S,
        cu_seqlens=_bounds(sizes, torch.int32, device),
        positions_S=torch.cat([torch.arange(size, device=device) for size in sizes]),
        response_mask_S=mask_S,
        source_S=source_S,
        sequence_index=torch.tensor(list(indices), dtype=torch.int64, device=device),
        real_cu_seqlens=_bounds(real, torch.int64, device),
        max_seqlen=max(sizes),
    )


def gather_tokens(packed: PackedSequences, values_T: Tensor, fill: float | bool = 0) -> Tensor:
    """A per-token tensor of the batch in the micro-batch's layout: [T, ...] to [S, ...], `fill` on padding."""
    values_S = values_T.new_full((packed.source_S.numel(), *values_T.shape[1:]), fill)
    real_S = packed.real_S
    values_S[real_S] = values_T[packed.source_S[real_S]]
    return values_S


def scatter_tokens(packed: PackedSequences, values_S: Tensor, out_T: Tensor) -> None:
    """Write a micro-batch's per-token results to their places in the batch, in place: out_T[source] = values."""
    real_S = packed.real_S
    out_T[packed.source_S[real_S].to(out_T.device)] = values_S[real_S].to(out_T)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _bounds(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0).to(device=device, dtype=dtype)
