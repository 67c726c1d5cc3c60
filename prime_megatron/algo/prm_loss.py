"""What the PRM learns from the outcome, and what the losses among siblings must know of the whole batch.

With Q = sum_t (log prm - log ref), o the outcome in [0, 1], beta the reward coefficient, S the number of sequences
of the mini-batch over all ranks:

    ce        l_i = BCE(sigmoid(beta * Q_i), o_i), from the logit, so it neither saturates nor overflows; o may be
              fractional (paper, equation 4)
    ce_intercept  ce from the logit beta * Q_i + log(mu_i / (1 - mu_i)), mu_i the mean outcome of the prompt's K
              siblings, the sequence itself among them, held within [1e-6, 1 - 1e-6]
    dpo       l_i = -log sigmoid(s_i * beta * (Q_i - C_i)), s_i = +1 when o_i > 0, else -1
    bon_acc   l_i = w_i * (dpo's l_i), w_i = n * F^(n-1), F the share of siblings with o_j <= o_i
    bon_rm    the same, F the share of siblings with Q_j <= Q_i
    L = sum_i l_i / S

C_i is the mean Q of the siblings of the opposite outcome, from detached scores of the whole batch (update order
"reverse"): those with a smaller outcome when o_i > 0, with a larger one when o_i = 0; C_i = 0 where there is none,
which leaves -log sigmoid(s_i * beta * Q_i), cross-entropy on the hard label. w_i is the derivative of F^n, the
density of the best of n. F counts the sequence itself. The recipe's bon losses are sums over a micro-batch; here all
losses are the same mean, so that micro-batching and layout cannot change them. All are one formula in `algo.losses`:
w_i * BCEWithLogits(beta * (Q_i - b_i), target), the target o_i for ce and ce_intercept and o_i > 0 for the others.

Plain ce must explain with token rewards how hard a prompt is: where nearly all outcomes are 0 it lowers every sampled
token. With the intercept the gradients of a prompt's responses cancel at Q = 0, and a prompt whose responses all fail
or all pass teaches nothing (its mu is at the bound, where the logit's error is 1e-6). The intercept is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.algo.segments import Siblings
from prime_megatron.config.algorithm import PrmLossKind, PrmObjective

MEAN_EPS = 1e-6
"""How near to 0 and 1 a mean outcome may come before its logit is taken."""


@dataclass(frozen=True)
class SiblingTerms:
    """What a sequence needs to know of its siblings, detached, [N]; index it like the batch for a micro-batch."""

    baseline_N: Tensor
    """b_i of the logit beta * (Q_i - b_i): C_i for dpo and bon, -logit(mu_i) / beta for ce_intercept."""
    weight_N: Tensor
    """w_i of the bon losses, 1 for the others."""


def sibling_terms(q_N: Tensor | None, outcome_N: Tensor, group_N: Tensor, config: PrmObjective) -> SiblingTerms | None:
    """Terms of every sequence of the batch; None for ce, which needs none.

    q_N: Q of the whole batch, [N], not scaled by beta; read by dpo and bon alone, None where nothing was scored yet.
    Siblings share a rank, so this needs no communication.
    """
    if config.loss is PrmLossKind.ce:
        return None
    if config.loss is PrmLossKind.ce_intercept:
        baseline_N = -logit_of_siblings(outcome_N, group_N) / config.beta
        return SiblingTerms(baseline_N.to(outcome_N.dtype), torch.ones_like(outcome_N))
    assert q_N is not None, f"prm.loss {config.loss} compares scores"
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


def logit_of_siblings(outcome_N: Tensor, group_N: Tensor) -> Tensor:
    """log(mu / (1 - mu)) of every sequence's group, mu held within MEAN_EPS of 0 and 1: float64 [N]."""
    siblings = Siblings.of(group_N)
    mean_N = siblings.sum(outcome_N.double()) / siblings.size_N
    return torch.logit(mean_N, eps=MEAN_EPS)
