"""From hidden states to log-probs and losses; the only place where the one-token shift happens.

Index t speaks of token t: position t - 1 predicts it. Only positions that predict a response token go through the
vocabulary projection. Legend: S tokens of a micro-batch, R of them response tokens, r of those predicted here (all R
but under context parallelism).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn

from prime_megatron.algo.token_loss import TokenLoss
from prime_megatron.kernels.logprob import fused_logprob_loss, token_logprobs
from prime_megatron.mcore.context import LocalTokens
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import LogProbs


@dataclass(frozen=True)
class Head:
    """The vocabulary projection of a role's last stage."""

    model: nn.Module
    """The last chunk, out of Megatron's wrappers."""
    topology: Topology
    vocab_size: int
    """True vocabulary: padding rows of the projection never count."""
    impl: str

    def keywords(self, temperature: float) -> dict[str, Any]:
        """What both kernels need to know about the projection."""
        return {
            "temperature": temperature,
            "group": self.topology.tensor if self.topology.sizes.tensor > 1 else None,
            "vocab_size": self.vocab_size,
            "impl": self.impl,
        }


@dataclass(frozen=True)
class Learned:
    """A micro-batch's loss (differentiable scalar), its log-probs and its statistics (both detached)."""

    loss: Tensor
    scored: LogProbs
    stats: Mapping[str, Tensor]


def predict_next(head: Head, hidden_T1H: Tensor, micro: LocalTokens, temperature: float) -> LogProbs:
    """Log-probs and entropies of the micro-batch's response tokens, float32 [S], 0 elsewhere; differentiable.

    Under context parallelism every rank gets all S values, and the gradient of its own positions alone.
    """
    hidden_rH = _predicting(head, hidden_T1H, micro)
    scored = token_logprobs(hidden_rH, head.model.head_weight(), micro.targets, **head.keywords(temperature))
    assert scored.entropy_T is not None
    return LogProbs(_place(head, scored.logprobs_T, micro), _place(head, scored.entropy_T, micro))


@torch.no_grad()
def target_logits(head: Head, hidden_T1H: Tensor, micro: LocalTokens, temperature: float) -> Tensor:
    """The logit of each response token, float32 [S], 0 elsewhere."""
    hidden_rH = _predicting(head, hidden_T1H, micro)
    weight_VH = head.model.head_weight()
    row_r = micro.targets - head.topology.at.tensor * weight_VH.shape[0]
    here_r = (row_r >= 0) & (row_r < weight_VH.shape[0])
    rows_rH = weight_VH[row_r.clamp(0, weight_VH.shape[0] - 1)]
    logits_r = ((hidden_rH.float() * rows_rH.float()).sum(-1) / temperature).masked_fill(~here_r, 0.0)
    if head.topology.sizes.tensor > 1:
        dist.all_reduce(logits_r, group=head.topology.tensor)
    return _place(head, logits_r, micro)


def learn_next(
    head: Head, hidden_T1H: Tensor, micro: LocalTokens, token_loss: TokenLoss, temperature: float
) -> Learned:
    """The loss over the micro-batch's response tokens (in packed order), its gradient made in the forward.

    Under context parallelism, where a rank sees a part of each sequence, the log-probs are gathered first and
    autograd differentiates the loss's definition.
    """
    if head.topology.sizes.context > 1:
        return _learn_gathered(head, hidden_T1H, micro, token_loss, temperature)
    hidden_rH = _predicting(head, hidden_T1H, micro)
    # grad_scale: the pipeline schedule's backward starts from exactly 1, so the weight's gradient needs no buffer.
    result = fused_logprob_loss(
        hidden_rH, head.model.head_weight(), micro.targets, token_loss, grad_scale=1.0, **head.keywords(temperature)
    )
    entropy_r = torch.zeros_like(result.logprobs_T) if result.entropy_T is None else result.entropy_T
    scored = LogProbs(_place(head, result.logprobs_T, micro), _place(head, entropy_r, micro))
    return Learned(result.loss, scored, result.stats)


def predict_values(head: Head, hidden_T1H: Tensor, micro: LocalTokens) -> Tensor:
    """The value of the text before each response token, float32 [S], 0 elsewhere; differentiable.

    Read at the position that predicts the token, like a log-prob. The product runs in float32.
    """
    hidden_rH = _predicting(head, hidden_T1H, micro)
    values_r = torch.nn.functional.linear(hidden_rH.float(), head.model.head_weight().float()).squeeze(1)
    return _place(head, values_r, micro)


def _learn_gathered(
    head: Head, hidden_T1H: Tensor, micro: LocalTokens, token_loss: TokenLoss, temperature: float
) -> Learned:
    scored = predict_next(head, hidden_T1H, micro, temperature)
    mask_S = micro.packed.response_mask_S
    logprobs_R, entropy_R = scored.logprobs_T[mask_S], scored.entropy_T[mask_S]
    loss = token_loss.plain(logprobs_R, entropy_R)
    terms = token_loss.terms(logprobs_R.detach(), entropy_R.detach(), slice(0, logprobs_R.numel()))
    return Learned(loss, LogProbs(scored.logprobs_T.detach(), scored.entropy_T.detach()), terms.stats)


def _predicting(head: Head, hidden_T1H: Tensor, micro: LocalTokens) -> Tensor:
    """Hidden states of the positions that predict a response token, [r, H]."""
    if head.model.config.sequence_parallel:
        # The head sums the gradient over the tensor-parallel group itself, so the backward only splits.
        hidden_T1H = gather_from_sequence_parallel_region(
            hidden_T1H, tensor_parallel_output_grad=False, group=head.topology.tensor
        )
    return hidden_T1H.squeeze(1).index_select(0, micro.rows)


def _place(head: Head, values_r: Tensor, micro: LocalTokens) -> Tensor:
    """Put per-row values at the token they speak of, [r] -> [S], whole on every context rank."""
    whole = torch.zeros(micro.packed.tokens_S.numel(), dtype=values_r.dtype, device=values_r.device)
    whole = whole.index_copy(0, micro.slots, values_r)
    topology = head.topology
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
