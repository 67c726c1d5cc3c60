"""From hidden states to log-probs; the only place where the one-token shift happens."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn

from prime_megatron.kernels.logprob import token_logprobs
from prime_megatron.mcore.context import LocalTokens
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import LogProbs


def predict_next(
    model: nn.Module,
    hidden_T1H: Tensor,
    micro: LocalTokens,
    topology: Topology,
    *,
    vocab_size: int,
    temperature: float,
    impl: str,
) -> LogProbs:
    """Log-probs and entropies of the micro-batch's response tokens, float32 [S]; 0 elsewhere.

    Index t speaks of token t: position t - 1 predicts it. Only positions that predict a response token go
    through the vocabulary projection. Under context parallelism every rank gets all S values, and the
    gradient of its own positions alone.
    """
    hidden_TH = response_hidden(model, hidden_T1H, micro, topology)
    scored = token_logprobs(
        hidden_TH,
        model.head_weight(),
        micro.targets,
        temperature=temperature,
        group=topology.tensor if topology.sizes.tensor > 1 else None,
        vocab_size=vocab_size,
        impl=impl,
    )
    return LogProbs(place(scored.logprobs_T, micro, topology), place(scored.entropy_T, micro, topology))


def response_hidden(model: nn.Module, hidden_T1H: Tensor, micro: LocalTokens, topology: Topology) -> Tensor:
    """Hidden states of the positions that predict a response token, [rows, H]."""
    if model.config.sequence_parallel:
        # The head sums the gradient over the tensor-parallel group itself, so the backward only splits.
        hidden_T1H = gather_from_sequence_parallel_region(
            hidden_T1H, tensor_parallel_output_grad=False, group=topology.tensor
        )
    return hidden_T1H.squeeze(1).index_select(0, micro.rows)


def place(values: Tensor, micro: LocalTokens, topology: Topology) -> Tensor:
    """Put per-row values at the token they speak of, [rows] -> [S], whole on every context rank."""
    whole = torch.zeros(micro.packed.tokens_S.numel(), dtype=values.dtype, device=values.device)
    whole = whole.index_copy(0, micro.slots, values)
    return _SumOverContext.apply(whole, topology.context) if topology.sizes.context > 1 else whole


class _SumOverContext(torch.autograd.Function):
    """Sum of the context ranks' parts; each rank's gradient is that of its own part.

    Every rank computes the whole loss, so the gradients of the ranks' parts add up to the loss's gradient in
    Megatron's reduction over data and context ranks: none is counted twice.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
