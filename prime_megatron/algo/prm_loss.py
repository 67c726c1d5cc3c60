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
    prefix_value  every prefix is to tell the outcome: `algo.prefix_value`; with adaptive_boundary its intercept is
              ce_intercept's, with difficulty_weights w_i = K u_i / sum_j u_j, u_i = o_i (1 - mu_i) + (1 - o_i) mu_i,
              1 where all u are 0
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
SAME_EPS = 1e-8
"""Siblings whose difficulty weights add up to less are all alike."""


@dataclass(frozen=True)
class SiblingTerms:
    """What a sequence needs to know of its siblings, detached, [N]; index it like the batch for a micro-batch."""

    baseline_N: Tensor
    """b_i of the logit beta * (Q_i - b_i): C_i for dpo and bon, -logit(mu_i) / beta where there is an intercept."""
    weight_N: Tensor
    """w_i of the bon losses and of prefix_value, 1 for the others."""


def sibling_terms(q_N: Tensor | None, outcome_N: Tensor, group_N: Tensor, config: PrmObjective) -> SiblingTerms | None:
    """Terms of every sequence of the batch; None for ce, and for prefix_value by itself, which need none.

    q_N: Q of the whole batch, [N], not scaled by beta; read by dpo and bon alone, None where nothing was scored yet.
    Siblings share a rank, so this needs no communication.
    """
    if not config.compares_siblings:
        return None
    if config.loss in (PrmLossKind.ce_intercept, PrmLossKind.prefix_value):
        intercept_N = intercepts(outcome_N, group_N, config)
        baseline_N = torch.zeros_like(outcome_N) if intercept_N is None else -intercept_N / config.beta
        weight_N = torch.ones_like(outcome_N)
        if config.difficulty_weights:
            weight_N = difficulty_weights(outcome_N, group_N)
        return SiblingTerms(baseline_N.to(outcome_N.dtype), weight_N.to(outcome_N.dtype))
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


def logit_scores(q_N: Tensor, length_N: Tensor, loss: PrmLossKind) -> Tensor:
    """What beta turns into the logit of every response, [N], nats: Q; under prefix_value Q / L, the mean over its L
    response tokens, which is the value of the whole response."""
    if loss is not PrmLossKind.prefix_value:
        return q_N
    return (q_N.double() / length_N.double().clamp(min=1.0)).to(q_N.dtype)


def intercepts(outcome_N: Tensor, group_N: Tensor, config: PrmObjective) -> Tensor | None:
    """What a loss adds to beta times the log-ratio of every sequence: log(mu / (1 - mu)) of its group, mu held within
    MEAN_EPS of 0 and 1, float64 [N]; None where it adds nothing."""
    if config.loss is not PrmLossKind.ce_intercept and not config.adaptive_boundary:
        return None
    return torch.logit(_mean_of_siblings(outcome_N, Siblings.of(group_N)), eps=MEAN_EPS)


def difficulty_weights(outcome_N: Tensor, group_N: Tensor) -> Tensor:
    """IPVRM's DLW: the share of siblings of the other outcome, with mean 1 over the group; float64 [N]."""
    siblings = Siblings.of(group_N)
    right_N, mean_N = outcome_N.double(), _mean_of_siblings(outcome_N, siblings)
    other_N = right_N * (1.0 - mean_N) + (1.0 - right_N) * mean_N
    total_N = siblings.sum(other_N)
    return torch.where(total_N > SAME_EPS, siblings.size_N * other_N / total_N.clamp(min=SAME_EPS), 1.0)


def _mean_of_siblings(outcome_N: Tensor, siblings: Siblings) -> Tensor:
    return siblings.sum(outcome_N.double()) / siblings.size_N
