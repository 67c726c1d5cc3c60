"""A PRM with a head: the value of every beginning of a response, its reward, and what it learns.

s_t is the head's logit of the text up to response token t, s_0 that of the prompt, L the last token, o the outcome in
[0, 1], S the number of sequences of the mini-batch over all ranks:

    value      v_t = sigmoid(s_t), the probability of success
    reward     r_t = v_t - v_{t-1}, so that a response's rewards sum to v_L - v_0; then steps 3 to 6 of
               `algo.process_reward` (beta scales a log-ratio, and there is none)
    prefix_ce  l_i = mean over t = 0 .. L of BCE(v_t, o)
    last_ce    l_i = BCE(v_L, o)
    L          = sum_i l_i / S

Cross-entropy is taken from the logits. A response counts once whatever its length, as in the implicit PRM's losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prime_megatron.algo.segments import last_mask, segment_count
from prime_megatron.config.algorithm import PrmLossKind
from prime_megatron.types import RolloutBatch


def head_values(logits_T: Tensor) -> tuple[Tensor, Tensor]:
    """(v_t, v_{t-1}) of every token, [T] each; they mean something on response tokens alone.

    logits_T: of the text up to and including a token, [T], on response tokens and each prompt's last token.
    """
    values_T = torch.sigmoid(logits_T)
    return values_T, torch.cat([values_T.new_zeros(1), values_T[:-1]])[: values_T.numel()]


def response_logits(logits_T: Tensor, batch: RolloutBatch) -> Tensor:
    """s_L of every response, [N]."""
    return logits_T[batch.cu_seqlens[1:] - 1]


def beginning_weights(batch: RolloutBatch, loss: PrmLossKind) -> Tensor:
    """The share of every token's beginning in its sequence's loss, float32 [T], 1 in the sum over a sequence."""
    sequence_T, count = batch.sequence_T, batch.outcome_N.numel()
    mask_T = batch.response_mask_T
    if loss is PrmLossKind.last_ce:
        return last_mask(mask_T, sequence_T, count).float()
    begins_T = torch.cat([mask_T[1:], mask_T.new_zeros(1)])[: mask_T.numel()] & ~mask_T  # the prompt's last token
    shares_N = 1.0 / (segment_count(mask_T, sequence_T, count) + 1.0)
    return torch.where(mask_T | begins_T, shares_N[sequence_T], 0.0).float()


def head_loss(logits_S: Tensor, targets_S: Tensor, weights_S: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_t w_t BCEWithLogits(s_t, o_t) of a micro-batch, and its statistics; all [S], weights divided by S already."""
    loss = (weights_S * F.binary_cross_entropy_with_logits(logits_S, targets_S, reduction="none")).sum()
    return loss, {"prm_loss_sum": loss.detach().double()}
