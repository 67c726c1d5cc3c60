"""One pass of micro-batches through a role's pipeline; the only caller of Megatron's schedules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
from torch import Tensor, nn

from prime_megatron.mcore.context import LocalTokens
from prime_megatron.mcore.packed import Packed

Consume = Callable[[LocalTokens, Tensor], tuple[Tensor, dict[str, Any]]]
"""Called on the last stage with a micro-batch and its hidden states [T', 1, H]: (loss, what to keep)."""


def _forward_name(*_: Any, current_microbatch: int | None = None, **__: Any) -> str:
    return "forward" if current_microbatch is None else f"forward {current_microbatch}"


MICRO_BATCH_CALLS: tuple[tuple[Any, str, Callable[..., str]], ...] = (
    (schedules, "forward_step", _forward_name),
    (schedules, "backward_step", lambda *_, **__: "backward"),
    (sys.modules[__name__], "finalize_model_grads", lambda *_, **__: "reduce gradients"),
)
"""What is done for one micro-batch, and for all gradients: module, function, and from its arguments the work's name."""


def run_pipeline(
    chunks: Sequence[nn.Module], micro_batches: Sequence[LocalTokens], consume: Consume, *, train: bool
) -> list[dict[str, Any]]:
    """Forward (and backward) every micro-batch; returns what ``consume`` kept, in order, on the last stage.

    Losses are sums that the caller has already divided by global counts, so gradients only add up: over
    micro-batches here, over data and context ranks in Megatron's DDP (``calculate_per_token_loss``). When this
    returns they are reduced, tied embeddings and sequence-parallel norms included. On other stages the list is empty.
    """

    def forward_step(iterator: Any, model: nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro = next(iterator)
        hidden = model(
            input_ids=micro.tokens_1T,
            position_ids=micro.positions_1T,
            attention_mask=None,
            packed_seq_params=_packed_params(micro),
        )
        return hidden, partial(_loss, micro)

    def _loss(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        loss, kept = consume(micro, hidden)
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), kept

    iterators = [iter(micro_batches) for _ in chunks]
    with torch.set_grad_enabled(train):
        kept = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=list(chunks) if len(chunks) > 1 else chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=1,  # unused: shapes travel with the tensors (variable_seq_lengths)
            micro_batch_size=1,
            forward_only=not train,
        )
    if train:
        finalize_model_grads(list(chunks))
    return kept


def _packed_params(micro: LocalTokens) -> Packed:
    """Megatron's description of the whole micro-batch; under context parallelism it divides by the size itself."""
    bounds, longest = micro.packed.cu_seqlens, micro.packed.max_seqlen
    return Packed(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=bounds,
        cu_seqlens_kv_padded=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        lengths=micro.lengths,
    )
