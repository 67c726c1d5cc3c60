"""What the PRM learns from the outcome, and what the losses among siblings must know of the whole batch.

With Q = sum_t (log prm - log ref), o the outcome in [0, 1], beta the reward coefficient, S the number of sequences
of the mini-batch over all ranks:

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
losses are the same mean, so that micro-batching and layout cannot change them. All are one formula in `algo.losses`:
w_i * BCEWithLogits(beta * (Q_i - C_i), target), the target o_i for ce and o_i > 0 for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.algo.segments import Siblings
from prime_megatron.config.algorithm import PrmLossKind, PrmObjective


@dataclass(frozen=True)
class SiblingTerms:
    """What a sequence needs to know of its siblings, detached, [N]; index it like the batch for a micro-batch."""

    opposite_N: Tensor
    """C_i, mean Q of the siblings of the opposite outcome, not scaled by beta; 0 without any."""
    weight_N: Tensor
    """w_i of the bon losses, 1 for dpo."""


def sibling_terms(q_N: Tensor, outcome_N: Tensor, group_N: Tensor, config: PrmObjective) -> SiblingTerms | None:
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
