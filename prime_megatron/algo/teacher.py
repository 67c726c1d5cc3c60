"""A teacher in the PRM's place: its judgement of a token, and the advantage that it makes of the outcome's.

T_t = log P_T(y_t) - log P_old(y_t) of response token t, never differentiated; A_t the advantage of the outcome alone
(its estimator, discounts, whitening), alpha advantage.process_weight:

    ratio    A_t + alpha * T_t; without an outcome (outcome_weight 0) the reverse KL to the teacher on the policy's own
             responses, one sample a token (arXiv 2306.13649; on-policy distillation)
    iw_opd   A_t + alpha * w_t * T_t, w_t = 1 + g * (1 - sum_{s<t} |T_s| / sum_s |T_s|)    (arXiv 2606.22600)
    rlsd     A_t * (1 - l + l * clip(exp(sign(A_t) * T_t), 1 - e, 1 + e))                  (arXiv 2604.03128)

T_t is an advantage already: no baseline, no return to go, no norm. In rlsd the teacher moves an advantage's size and
never its sign: as a direction of its own a teacher that sees the truth gives it away. l falls linearly from
prm.teacher.mix at the first step to 0 after mix_steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.process_reward import log_ratio
from prime_megatron.algo.segments import discounted_sum, segment_sum
from prime_megatron.algo.statistics import Statistics
from prime_megatron.config.teacher import TeacherAlgorithm, TeacherMode
from prime_megatron.types import Advantages, RolloutBatch


def mix_at(config: TeacherAlgorithm, step: int) -> float:
    """l of step ``step``, from 1; 0 after mix_steps."""
    return config.mix * max(0.0, 1.0 - (step - 1) / config.mix_steps)


def late_weights(judged_T: Tensor, sequence_T: Tensor, num_sequences: int, discount: float) -> Tensor:
    """w_t of iw_opd, float64 [T]: 1 + discount at a response's first token, falling to 1 behind its last."""
    size_T = judged_T.double().abs()
    total_T = segment_sum(size_T, sequence_T, num_sequences)[sequence_T]
    before_T = total_T - discounted_sum(size_T, sequence_T, 1.0)
    return 1.0 + discount * (1.0 - before_T / torch.where(total_T > 0.0, total_T, 1.0))


def sign_weights(judged_T: Tensor, advantages_T: Tensor) -> Tensor:
    """exp(sign(A_t) * T_t) of rlsd, not clipped: float64 [T]."""
    return torch.exp(torch.sign(advantages_T.double()) * judged_T.double())


def taught_advantages(
    batch: RolloutBatch,
    teacher_logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    outcome: Advantages,
    config: TeacherAlgorithm,
    *,
    alpha: float,
    mix: float,
) -> Advantages:
    """The advantages with the teacher's judgement, float32 [T], no gradient.

    outcome: those of the outcome alone. mix: l, of rlsd. process_rewards_T is T_t, of iw_opd w_t * T_t; returns_T stays
    the outcome's.
    """
    with torch.no_grad():
        mask_T, dtype = batch.response_mask_T, outcome.advantages_T.dtype
        judged_T = log_ratio(teacher_logprobs_T, old_logprobs_T, mask_T).double()
        advantages_T = outcome.advantages_T.double()
        if config.mode is TeacherMode.rlsd:
            weights_T = sign_weights(judged_T, advantages_T).clamp(1.0 - config.clip, 1.0 + config.clip)
            advantages_T = advantages_T * (1.0 - mix + mix * weights_T)
        else:
            if config.mode is TeacherMode.iw_opd:
                judged_T = judged_T * late_weights(
                    judged_T, batch.sequence_T, batch.outcome_N.numel(), config.late_discount
                )
            advantages_T = advantages_T + alpha * judged_T
        return Advantages(judged_T.to(dtype), outcome.returns_T, torch.where(mask_T, advantages_T, 0.0).to(dtype))


def clip_statistics(batch: RolloutBatch, taught: Advantages, config: TeacherAlgorithm) -> Statistics:
    """How many tokens rlsd's clip holds; the advantages with the teacher have the sign of those without."""
    weights_T = sign_weights(taught.process_rewards_T, taught.advantages_T)
    held_T = batch.response_mask_T & ((weights_T - 1.0).abs() > config.clip)
    return Statistics(
        {"teacher_tokens": batch.response_mask_T.double().sum(), "teacher_clipped_sum": held_T.double().sum()}
    )
