"""Process rewards of the implicit PRM (paper, equation 3; recipe's prime_dp_rm.py for lambda and use_gt).

For response token t of a sequence with outcome o and last response token L, in this order:

    1. log-ratio      q_t = log((prm(y_t) + e) / (ref(y_t) + e))            ratio_floor e; 0 outside the response
    2. scale          q_t <- beta * q_t                                     scale_by_beta
    3. ground truth   q_L <- o - sum of q_t over the other response tokens  use_gt: the sequence then sums to o
    4. smoothing      r_t = q_t + lambda * r_{t+1}                          lambda = 0: r = q
    5. granularity    token: r_t stays at t; step: summed over each step onto its last token; whole: onto L
    6. min-form       r_s <- w_s r_s, w_s = exp(-r_s / T) / sum_u exp(-r_u / T) over the response's steps u
                                                                            softmin_temperature T; none: w = 1
    7. batch norm     r <- r / (max over all sequences and t of |sum_{s >= t} r_s| + 1e-6)

Step 6 is PURE's (arXiv 2504.15275): as T falls, a response's return tends to its least step reward, so that many or
empty steps earn nothing; T is in the units of a step's reward. Step 7 comes last because it bounds the returns that the
policy sees, whatever the steps before did; its maximum is over all data-parallel ranks (both public codes take it over
one rank, so their rewards depend on the layout). With batch norm and without use_gt and T, beta cancels but for the
1e-6. The recipe applies step 3 only when lambda > 0; here use_gt acts alone too. Every response token keeps its reward;
the recipe drops the last one's. The floor e (ours; 0 leaves log prm - log ref) keeps |q_t| below log((1 + e) / e):
without it a token that the reference holds impossible can earn any reward. It acts in the reward alone, never in the
PRM's loss or in its value of a text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import discounted_sum, last_mask, segment_sum
from prime_megatron.config.algorithm import Granularity, PrmAlgorithm, RewardNorm
from prime_megatron.types import RolloutBatch

NORM_EPS = 1e-6


def log_ratio(prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, response_mask_T: Tensor) -> Tensor:
    """q_t = log prm - log ref on response tokens, 0 elsewhere: [T], nats; differentiable in both."""
    return torch.where(response_mask_T, prm_logprobs_T - ref_logprobs_T, 0.0)


def floored_log_ratio(prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, response_mask_T: Tensor, floor: float) -> Tensor:
    """q_t = log((prm + floor) / (ref + floor)) on response tokens, 0 elsewhere: [T], nats.

    floor in [0, 1), a probability; 0: `log_ratio`. |q_t| < log((1 + floor) / floor); equal scores give exactly 0.
    """
    if floor == 0.0:
        return log_ratio(prm_logprobs_T, ref_logprobs_T, response_mask_T)
    log_floor = torch.full((), math.log(floor), dtype=prm_logprobs_T.dtype, device=prm_logprobs_T.device)
    q_T = torch.logaddexp(prm_logprobs_T, log_floor) - torch.logaddexp(ref_logprobs_T, log_floor)
    return torch.where(response_mask_T, q_T, 0.0)


def sequence_log_ratio(
    prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, response_mask_T: Tensor, sequence_T: Tensor, num_sequences: int
) -> Tensor:
    """Q = sum_t q_t per sequence: [N], nats, not scaled by beta; differentiable."""
    q_T = log_ratio(prm_logprobs_T, ref_logprobs_T, response_mask_T)
    return segment_sum(q_T, sequence_T, num_sequences)


def reward_mask(batch: RolloutBatch, granularity: Granularity) -> Tensor:
    """Tokens that carry a process reward: bool [T].

    token: every response token. step: where a step ends, the last response token always. whole: that token alone.
    """
    if granularity is Granularity.token:
        return batch.response_mask_T
    last_T = last_mask(batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel())
    if granularity is Granularity.whole:
        return last_T
    return last_T | (batch.step_end_T & batch.response_mask_T)


def gather_rewards(rewards_T: Tensor, ends_T: Tensor) -> Tensor:
    """Sum rewards onto the closing tokens: the reward at an end is the sum since the end before it: [T].

    ends_T must close every sequence that has a reward, so that no sum crosses into the next sequence.
    """
    closed_T = torch.cumsum(ends_T, 0)
    span_T = closed_T - ends_T.long()
    sums = segment_sum(rewards_T, span_T, rewards_T.numel() + 1)
    return torch.where(ends_T, sums[span_T], 0.0)


def process_rewards(
    batch: RolloutBatch, prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, config: PrmAlgorithm, reduce: Reduction
) -> Tensor:
    """Process reward of each token, float [T] (the dtype of the log-probs), 0 outside the response; no gradient.

    prm_logprobs_T, ref_logprobs_T: [T], nats; the reference is prm.reference's choice, made by the caller (the frozen
    initial PRM or the policy before its update). Calls reduce.max once when config.norm is batch_norm.
    """
    with torch.no_grad():
        num_sequences = batch.outcome_N.numel()
        sequence_T = batch.sequence_T
        q_T = floored_log_ratio(prm_logprobs_T, ref_logprobs_T, batch.response_mask_T, config.ratio_floor)
        if config.scale_by_beta:
            q_T = config.beta * q_T
        if config.use_gt:
            last_T = last_mask(batch.response_mask_T, sequence_T, num_sequences)
            others_N = segment_sum(torch.where(last_T, 0.0, q_T), sequence_T, num_sequences)
            q_T = torch.where(last_T, (batch.outcome_N.to(q_T.dtype) - others_N)[sequence_T], q_T)
        rewards_T = discounted_sum(q_T, sequence_T, config.smoothing_lambda)
        rewards_T = torch.where(batch.response_mask_T, rewards_T, 0.0)
        if config.granularity is not Granularity.token:
            rewards_T = gather_rewards(rewards_T, reward_mask(batch, config.granularity))
        if config.softmin_temperature is not None:
            ends_T = reward_mask(batch, config.granularity)
            rewards_T = rewards_T * softmin(rewards_T, ends_T, sequence_T, num_sequences, config.softmin_temperature)
        if config.norm is RewardNorm.batch_norm:
            rewards_T = batch_norm(rewards_T, sequence_T, reduce)
        return rewards_T


def softmin(rewards_T: Tensor, ends_T: Tensor, sequence_T: Tensor, num_sequences: int, temperature: float) -> Tensor:
    """w_s of step 6 at the tokens that close a step, 0 elsewhere: [T]; they sum to 1 in a response."""
    logits_T = torch.where(ends_T, -rewards_T.double() / temperature, -torch.inf)
    top_N = logits_T.new_full((num_sequences,), -torch.inf).scatter_reduce(0, sequence_T, logits_T, reduce="amax")
    powers_T = torch.where(ends_T, torch.exp(logits_T - top_N[sequence_T]), 0.0)
    return (powers_T / segment_sum(powers_T, sequence_T, num_sequences)[sequence_T].clamp(min=1.0)).to(rewards_T.dtype)


def batch_norm(rewards_T: Tensor, sequence_T: Tensor, reduce: Reduction) -> Tensor:
    """r / (max over all ranks, sequences and t of |sum_{s >= t} r_s| + 1e-6): [T]."""
    returns_T = discounted_sum(rewards_T, sequence_T, 1.0).abs()
    largest = torch.cat([returns_T, returns_T.new_zeros(1)]).max()
    return rewards_T / (reduce.max(largest) + NORM_EPS)
