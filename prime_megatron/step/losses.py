"""What each role learns from a micro-batch: `algo.losses` on the micro-batch's response tokens.

Every maker closes over the whole batch's tensors and cuts out the micro-batch's response tokens, in packed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo import losses as formulas
from prime_megatron.algo.objectives import objective_named
from prime_megatron.algo.prefix_value import PrefixValueLoss
from prime_megatron.algo.prm_loss import SiblingTerms
from prime_megatron.algo.value_loss import value_loss
from prime_megatron.config import KlPlace, PolicyAlgorithm, PrmLossKind, PrmObjective
from prime_megatron.mcore.critic import MakeValueLoss, ValueLoss
from prime_megatron.mcore.role import MakeLoss
from prime_megatron.step.loss_weights import LossWeights
from prime_megatron.step.plan import OldLogprobs
from prime_megatron.types import Advantages, MiniBatch, PackedSequences, RolloutBatch, Scores


def policy_loss(
    config: PolicyAlgorithm,
    scores: Scores,
    advantages: Advantages,
    weights: LossWeights,
    old: OldLogprobs,
    first: MiniBatch,
) -> MakeLoss:
    """The policy's objective with its entropy and KL terms.

    In the first mini-batch the policy has not moved, so unless all old log-probs were needed anyway its ratio is 1
    by construction and its own forward serves. Importance weights correct the objective, not entropy and KL.
    """
    objective = objective_named(config.objective)
    advantages_T = advantages.advantages_T * weights.factors_T
    in_loss = config.kl_place is KlPlace.loss and scores.policy_ref_logprobs_T is not None

    def make(micro: PackedSequences, mini: MiniBatch) -> formulas.PolicyLoss:
        def rows(values_T: Tensor) -> Tensor:
            return response_rows(micro, values_T)

        own = old is OldLogprobs.none or (old is OldLogprobs.later and mini is first)
        return formulas.PolicyLoss(
            advantages_T=rows(advantages_T),
            weights_T=rows(weights.weights_T),
            old_logprobs_T=None if own else rows(_needed(scores.old_logprobs_T)),
            objective=objective,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            entropy_coef=config.entropy_coef,
            kl_coef=config.kl_coef if in_loss else 0.0,
            kl_estimator=config.kl_estimator,
            ref_logprobs_T=rows(_needed(scores.policy_ref_logprobs_T)) if in_loss else None,
            boundaries=response_bounds(micro) if objective.whole_sequences else None,
        )

    return make


def prm_loss(
    config: PrmObjective, batch: RolloutBatch, ref_logprobs_T: Tensor, siblings: SiblingTerms | None
) -> MakeLoss:
    """The implicit PRM's loss on q_t = log prm - log ref, a mean over the mini-batch's sequences of all ranks.

    ``siblings``: what a loss that compares siblings needs of the whole batch; None for the others. dpo and bon are
    cross-entropy with a hard label on the margin to the siblings of the opposite outcome: -log sigmoid(s * x), s = +-1.
    """
    if config.loss is PrmLossKind.prefix_value:
        return _prefix_value_loss(config, batch, ref_logprobs_T, siblings)
    hard = config.loss not in (PrmLossKind.ce, PrmLossKind.ce_intercept)
    targets_N = (batch.outcome_N > 0.0).float() if hard else batch.outcome_N
    weights_N = torch.ones_like(targets_N) if siblings is None else siblings.weight_N

    def make(micro: PackedSequences, mini: MiniBatch) -> formulas.PrmLoss:
        index = micro.sequence_index
        return formulas.PrmLoss(
            ref_logprobs_T=response_rows(micro, ref_logprobs_T),
            mask_T=torch.ones(int(micro.response_mask_S.sum()), dtype=torch.bool, device=targets_N.device),
            boundaries=response_bounds(micro),
            targets_N=targets_N[index],
            beta=config.beta,
            baselines_N=None if siblings is None else siblings.baseline_N[index],
            weights_N=weights_N[index] / mini.num_sequences,
        )

    return make


def _prefix_value_loss(
    config: PrmObjective, batch: RolloutBatch, ref_logprobs_T: Tensor, siblings: SiblingTerms | None
) -> MakeLoss:
    weights_N = torch.ones_like(batch.outcome_N) if siblings is None else siblings.weight_N
    margin = 0.5 * config.beta if config.margin is None else config.margin

    def make(micro: PackedSequences, mini: MiniBatch) -> PrefixValueLoss:
        index = micro.sequence_index
        return PrefixValueLoss(
            ref_logprobs_T=response_rows(micro, ref_logprobs_T),
            boundaries=response_bounds(micro),
            targets_N=batch.outcome_N[index],
            beta=config.beta,
            margin=margin,
            intercepts_N=None if siblings is None else -config.beta * siblings.baseline_N[index],
            weights_N=weights_N[index] / mini.num_sequences,
        )

    return make


def critic_loss(old_values_T: Tensor, returns_T: Tensor, clip: float | None) -> MakeValueLoss:
    """The critic's clipped squared error, one mean over the mini-batch's response tokens of all ranks.

    old_values_T: the values that gae used; returns_T: its targets; both [T].
    """

    def make(micro: PackedSequences, mini: MiniBatch) -> ValueLoss:
        old_R, returns_R = response_rows(micro, old_values_T), response_rows(micro, returns_T)

        def loss(values_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            everywhere_R = torch.ones_like(values_R, dtype=torch.bool)
            return value_loss(values_R, old_R, returns_R, everywhere_R, mini.num_tokens, clip)

        return loss

    return make


def nll_loss() -> MakeLoss:
    """Supervised: one mean of -log p over the batch's response tokens of all ranks."""

    def make(micro: PackedSequences, mini: MiniBatch) -> formulas.NllLoss:
        rows = int(micro.response_mask_S.sum())
        return formulas.NllLoss(torch.full((rows,), 1.0 / mini.num_tokens, device=micro.tokens_S.device))

    return make


def response_rows(micro: PackedSequences, values_T: Tensor) -> Tensor:
    """A per-token tensor of the batch at the micro-batch's response tokens, in packed order: [T] -> [R]."""
    return values_T[micro.source_S[micro.response_mask_S]]


def response_bounds(micro: PackedSequences) -> tuple[int, ...]:
    """Offsets of the sequences among the response tokens, 0 first."""
    counted = torch.cat([micro.response_mask_S.new_zeros(1), micro.response_mask_S]).cumsum(0)
    return tuple(counted[micro.cu_seqlens[: micro.num_sequences + 1].long()].tolist())


def _needed(values_T: Tensor | None) -> Tensor:
    assert values_T is not None, "the step plan skipped a score that is needed"
    return values_T
