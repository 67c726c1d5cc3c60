"""Groups to this rank's packed batch, and the batch to micro-batches.

Shape legend: T tokens and N sequences of the batch, S tokens of a micro-batch, padding included, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prime_megatron.data.packing import BatchPlan, plan_batch
from prime_megatron.types import Group, PackedSequences, RolloutBatch


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
    source = torch.full((filled,), -1, dtype=torch.int64)
    start = 0
    for index, length, size in zip(indices, real, sizes, strict=True):
        source[start : start + length] = torch.arange(bounds[index], bounds[index + 1])
        start += size
    if filled > total:
        sizes.append(filled - total)
    # Indices are built on the host and moved once; torch.where instead of masks spares the device a wait.
    device = batch.tokens_T.device
    source_S = source.to(device)
    if indices:
        real_S, clamped_S = source_S >= 0, source_S.clamp(min=0)
        tokens_S = torch.where(real_S, batch.tokens_T[clamped_S], pad_token)
        mask_S = batch.response_mask_T[clamped_S] & real_S
    else:
        tokens_S = torch.full((filled,), pad_token, dtype=torch.int64, device=device)
        mask_S = torch.zeros(filled, dtype=torch.bool, device=device)
    return PackedSequences(
        tokens_S=tokens_S,
        cu_seqlens=_bounds(sizes, torch.int32).to(device),
        positions_S=torch.cat([torch.arange(size) for size in sizes]).to(device),
        response_mask_S=mask_S,
        source_S=source_S,
        sequence_index=torch.tensor(list(indices), dtype=torch.int64).to(device),
        max_seqlen=max(sizes),
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _bounds(sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0).to(dtype)
