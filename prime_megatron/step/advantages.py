"""The step's advantages, from its scores and outcomes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from prime_megatron.algo.advantage import compute_advantages
from prime_megatron.algo.head_value import head_values
from prime_megatron.algo.kl import kl_estimate
from prime_megatron.algo.overlong import with_overlong_penalty
from prime_megatron.algo.process_reward import log_ratio, process_rewards
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.teacher import mix_at, taught_advantages
from prime_megatron.config import Estimator, KlPlace, PolicyAlgorithm, PrmKind, RewardNorm, TrainConfig
from prime_megatron.config.reward_path import is_fused
from prime_megatron.config.roles import rewards_itself
from prime_megatron.kernels.reward import process_advantages
from prime_megatron.kernels.reward_form import RewardBatch, RewardForm
from prime_megatron.types import Advantages, RolloutBatch, Scores


def step_advantages(
    config: TrainConfig, batch: RolloutBatch, scores: Scores, reduce: Reduction, *, process: bool = True
) -> Advantages:
    """Process rewards, returns and advantages of this rank's sequences, float32 [T], 0 outside the response.

    By the fused path where it has what the config asks for, else by the definition; the two agree to rounding. The
    choice is the config's and ``process``'s alone, alike on all ranks, which make the same calls of ``reduce`` (over
    the data-parallel ranks). process False: without the PRM, to the last bit as with advantage.process_weight 0.
    """
    if not process:
        config, scores = _outcome_only(config), dataclasses.replace(scores, prm_logprobs_T=None)
    if is_fused(config):
        shaped = with_overlong_penalty(batch, config.advantage, config.rollout.sampling.max_response_tokens)
        return fused_advantages(config, shaped, scores, reduce)
    return defined_advantages(config, batch, scores, reduce)


def _outcome_only(config: TrainConfig) -> TrainConfig:
    """The same with advantage.process_weight 0."""
    return config.model_copy(update={"advantage": config.advantage.model_copy(update={"process_weight": 0.0})})


def with_teacher(
    config: TrainConfig, batch: RolloutBatch, scores: Scores, outcome: Advantages, step: int
) -> Advantages:
    """The outcome's advantages of step ``step`` with a teacher's judgement; the same where there is no teacher."""
    teacher, alpha = config.prm.teacher, config.advantage.process_weight
    if scores.teacher_logprobs_T is None:
        return outcome
    assert scores.old_logprobs_T is not None, "the step plan skipped a score that is needed"
    pair = scores.teacher_logprobs_T, scores.old_logprobs_T
    return taught_advantages(batch, *pair, outcome, teacher, alpha=alpha, mix=mix_at(teacher, step))


def fused_advantages(config: TrainConfig, batch: RolloutBatch, scores: Scores, reduce: Reduction) -> Advantages:
    """``kernels.reward`` on the step's tensors."""
    advantage, prm = config.advantage, config.prm
    prm_T, ref_T = scores.prm_logprobs_T, scores.ref_logprobs_T
    if scores.head_logits_T is not None:
        prm_T, ref_T = head_values(scores.head_logits_T)  # a difference of values in place of one of log-probs
    if prm_T is None or ref_T is None:
        prm_T = ref_T = torch.zeros_like(batch.engine_logprobs_T)  # outcomes only
    # reinforce: no siblings to compare with
    alone = advantage.estimator in (Estimator.reinforce, Estimator.reinforce_pp)
    baseline = advantage.leave_one_out.value
    if advantage.estimator is Estimator.grpo:
        baseline = "z_score" if advantage.scale_by_deviation else "mean"
    return process_advantages(
        RewardBatch(
            prm_logprobs_T=prm_T,
            ref_logprobs_T=ref_T,
            response_mask_T=batch.response_mask_T,
            cu_seqlens=batch.cu_seqlens,
            group_N=torch.arange(batch.group_N.numel(), device=batch.group_N.device) if alone else batch.group_N,
            outcome_N=batch.outcome_N,
        ),
        RewardForm(
            scale=prm.beta if prm.scale_by_beta and prm.kind is PrmKind.implicit else 1.0,
            ratio_floor=prm.ratio_floor,
            batch_norm=prm.norm is RewardNorm.batch_norm,
            baseline=baseline,
            process_weight=advantage.process_weight,
            outcome_weight=advantage.outcome_weight,
            gamma_process=advantage.gamma_process,
            gamma_outcome=advantage.gamma_outcome,
            whiten=advantage.whiten or advantage.estimator is Estimator.reinforce_pp,
        ),
        reduce=reduce,
        impl=advantage.impl,
    )


def defined_advantages(config: TrainConfig, batch: RolloutBatch, scores: Scores, reduce: Reduction) -> Advantages:
    """``algo.process_reward`` and ``algo.advantage``, which have every setting."""
    rewards = ratio = None
    judge_T = scores.old_logprobs_T if rewards_itself(config) else scores.prm_logprobs_T
    if judge_T is not None:
        assert scores.ref_logprobs_T is not None
        rewards = process_rewards(batch, judge_T, scores.ref_logprobs_T, config.prm, reduce)
        ratio = log_ratio(judge_T, scores.ref_logprobs_T, batch.response_mask_T)
    elif scores.head_logits_T is not None:
        unscaled = config.prm.model_copy(update={"scale_by_beta": False})
        rewards = process_rewards(batch, *head_values(scores.head_logits_T), unscaled, reduce)
    # Without process rewards (none, or a teacher's, which come after) the outcome is the only source.
    alone = config.advantage.model_copy(update={"process_weight": 0.0})
    return compute_advantages(
        with_overlong_penalty(batch, config.advantage, config.rollout.sampling.max_response_tokens),
        rewards,
        alone if rewards is None else config.advantage,
        config.prm,
        reduce,
        values_T=scores.values_T,
        log_ratio_T=ratio,
        kl_T=_kl_penalty(config.policy, scores),
    )


def _kl_penalty(config: PolicyAlgorithm, scores: Scores) -> Tensor | None:
    """What the KL term takes from the token rewards, [T]; None where KL is not in the reward."""
    if config.kl_place is not KlPlace.reward:
        return None
    assert scores.old_logprobs_T is not None and scores.policy_ref_logprobs_T is not None
    return config.kl_coef * kl_estimate(scores.old_logprobs_T - scores.policy_ref_logprobs_T, config.kl_estimator)
