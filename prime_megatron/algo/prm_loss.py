"""What the PRM learns from the outcome: a loss per sequence on Q = sum_t (log prm - log ref).

With o the outcome in [0, 1], beta the reward coefficient, S the number of sequences of the mini-batch over all ranks:

    ce        l_i = BCE(sigmoid(beta * Q_i), o_i), from the logit, so it neither saturates nor overflows; o may be
              fractional (paper, equation 4)
    dpo       l_i = -log sigmoid(s_i * beta * (Q_i - C_i)), s_i = +1 when o_i > 0, else -1
    bon_acc   l_i = w_i * (dpo's l_i), w_i = n * F^(n-1), F the share of siblings with o_j <= o_i
    bon_rm    the same, F the share of siblings with Q_j <= Q_i
    L = sum_i l_i / S

C_i is the mean Q of the siblings of the opposite outcome, from detached scores of the whole batch (update order
"reverse"): those with a smaller outcome when o_i > 0, with a larger one when o_i = 0; C_i = 0 where there is none,
which leaves -log sigmoid(s_i * beta * Q_i), cross-entropy on the hard label. w_i is the derivative of F^n, the
density of the best of n. F counts the sequence itself. The recipe's bon losses are sums over a micro-batch; here all
losses are the same mean, so that micro-batching and layout cannot change them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from prime_megatron.algo.process_reward import sequence_log_ratio
from prime_megatron.algo.segments import Siblings, sequence_index
from prime_megatron.config.algorithm import PrmAlgorithm, PrmLossKind


@dataclass(frozen=True)
class SiblingTerms:
    """What a sequence needs to know of its siblings, detached, [N]; index it like the batch for a micro-batch."""

    opposite_N: Tensor
    """C_i, mean Q of the siblings of the opposite outcome, not scaled by beta; 0 without any."""
    weight_N: Tensor
    """w_i of the bon losses, 1 for dpo."""

    def select(self, index: Tensor) -> SiblingTerms:
        """The terms of the sequences in index, int64 [n]."""
        return SiblingTerms(self.opposite_N[index], self.weight_N[index])


def sibling_terms(q_N: Tensor, outcome_N: Tensor, group_N: Tensor, config: PrmAlgorithm) -> SiblingTerms | None:
    """Terms of every sequence of the batch; None for ce, which needs none.

    q_N: Q of the whole batch, [N], not scaled by beta. Siblings share a rank, so this needs no communication.
    """
    if config.loss is PrmLossKind.ce:
        return None
    with torch.no_grad():
        siblings = Siblings.of(group_N)
        present_N1K = siblings.present_GK[group_N]
        q_NK = siblings.table(q_N.double())[group_N]
        outcome_NK = siblings.table(outcome_N.double())[group_N]
        own_q_N1, own_outcome_N1 = q_N.double()[:, None], outcome_N.double()[:, None]
        opposite_NK = torch.where(own_outcome_N1 > 0.0, outcome_NK < own_outcome_N1, outcome_NK > own_outcome_N1)
        opposite_NK = opposite_NK & present_N1K
        opposite_N = torch.where(opposite_NK, q_NK, 0.0).sum(1) / opposite_NK.sum(1).clamp(min=1)
        if config.loss is PrmLossKind.dpo:
            weight_N = torch.ones_like(opposite_N)
        else:
            below_NK = q_NK <= own_q_N1 if config.loss is PrmLossKind.bon_rm else outcome_NK <= own_outcome_N1
            share_N = (below_NK & present_N1K).sum(1) / siblings.size_N
            weight_N = config.bon_n * share_N ** (config.bon_n - 1)
        return SiblingTerms(opposite_N.to(q_N.dtype), weight_N.to(q_N.dtype))


def sequence_losses(q_N: Tensor, outcome_N: Tensor, terms: SiblingTerms | None, config: PrmAlgorithm) -> Tensor:
    """l_i of the table above: [N], differentiable in q_N."""
    outcome_N = outcome_N.to(q_N.dtype)
    if config.loss is PrmLossKind.ce:
        logit_N = config.beta * q_N
        return softplus(logit_N) - outcome_N * logit_N
    assert terms is not None, "dpo and bon losses need sibling_terms of the whole batch"
    margin_N = _sign(outcome_N) * config.beta * (q_N - terms.opposite_N)
    return -terms.weight_N * logsigmoid(margin_N)


def loss_coefficients(
    q_N: Tensor, outcome_N: Tensor, terms: SiblingTerms | None, config: PrmAlgorithm, num_sequences: int
) -> Tensor:
    """dL/dQ_i in closed form, [N], detached; dL/d(log prm(y_t)) is the same number on every response token of i.

    ce: beta * (sigmoid(beta * Q_i) - o_i) / S. dpo, bon: -w_i * s_i * beta * sigmoid(-s_i * beta * (Q_i - C_i)) / S.
    """
    with torch.no_grad():
        outcome_N = outcome_N.to(q_N.dtype)
        if config.loss is PrmLossKind.ce:
            return config.beta * (torch.sigmoid(config.beta * q_N) - outcome_N) / num_sequences
        assert terms is not None, "dpo and bon losses need sibling_terms of the whole batch"
        sign_N = _sign(outcome_N)
        slope_N = torch.sigmoid(-sign_N * config.beta * (q_N - terms.opposite_N))
        return -terms.weight_N * sign_N * config.beta * slope_N / num_sequences


def prm_loss(
    logprobs_T: Tensor,
    ref_logprobs_T: Tensor,
    response_mask_T: Tensor,
    cu_seqlens: Tensor,
    outcome_N: Tensor,
    terms: SiblingTerms | None,
    config: PrmAlgorithm,
    num_sequences: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch, already divided by the mini-batch's global number of sequences, and its statistics.

    logprobs_T: the PRM's, [T], with gradient. ref_logprobs_T: [T]. response_mask_T: bool [T]. cu_seqlens: int [n + 1].
    outcome_N, terms: those of the micro-batch's n sequences (SiblingTerms.select). Summing the losses of all
    micro-batches of all ranks gives L. Statistics are float64 sums over sequences: prm_loss_sum, prm_correct_sum
    (Q > 0 against o > 1/2, one half for Q = 0), prm_num.
    """
    num_local = cu_seqlens.numel() - 1
    sequence_T = sequence_index(cu_seqlens, logprobs_T.numel())
    q_N = sequence_log_ratio(logprobs_T, ref_logprobs_T, response_mask_T, sequence_T, num_local)
    losses_N = sequence_losses(q_N, outcome_N, terms, config)
    with torch.no_grad():
        right = torch.where(q_N == 0.0, 0.5, ((q_N > 0.0) == (outcome_N > 0.5)).double())
        stats = {
            "prm_loss_sum": losses_N.double().sum(),
            "prm_correct_sum": right.sum(),
            "prm_num": torch.tensor(float(num_local), dtype=torch.float64, device=q_N.device),
        }
    return losses_N.sum() / num_sequences, stats


def _sign(outcome_N: Tensor) -> Tensor:
    return torch.where(outcome_N > 0.0, 1.0, -1.0).to(outcome_N.dtype)
