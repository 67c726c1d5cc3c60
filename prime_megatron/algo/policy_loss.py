"""The policy's loss: PPO clip, entropy bonus, KL to the reference, truncated importance weights.

Over the response tokens t of a mini-batch of all ranks, M of them:

    ratio_t = pi(y_t) / pi_old(y_t)
    pg_t    = max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - clip_low, 1 + clip_high))
    w_t     = min(pi_old(y_t) / pi_engine(y_t), importance_cap), no gradient; 1 when the cap is off
    L       = (1/M) * sum_t [w_t * pg_t - entropy_coef * H_t + kl_coef * KL_t]     KL only with kl_place = loss

One mean over the tokens of the mini-batch, not a mean of micro-batch means as in both public codes, so that packing,
micro-batching and layout cannot change it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.kl import MAX_LOG_RATIO, kl_estimate
from prime_megatron.config.algorithm import KlPlace, PolicyAlgorithm


def policy_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor | None,
    advantages_T: Tensor,
    response_mask_T: Tensor,
    num_tokens: int,
    config: PolicyAlgorithm,
    *,
    entropy_T: Tensor | None = None,
    ref_logprobs_T: Tensor | None = None,
    engine_logprobs_T: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch, already divided by num_tokens (M), and its statistics.

    logprobs_T: float [T], nats, with gradient. old_logprobs_T: [T]; None where it equals logprobs_T by construction
    (first mini-batch): the ratio is then 1 with pi's gradient. advantages_T: [T]. response_mask_T: bool [T].
    entropy_T: [T], with gradient when entropy_coef is not 0, which needs it; otherwise for the statistics only.
    ref_logprobs_T: [T], needed with kl_place = loss. engine_logprobs_T: [T], needed with importance_cap; otherwise for
    the statistics only. Values outside the mask may be anything, nan too.

    Summing the losses of all micro-batches of all ranks gives L. Statistics are float64 sums over response tokens:
    policy_num_tokens, policy_pg_loss_sum (w_t * pg_t), policy_clip_low_sum and policy_clip_high_sum (tokens whose
    gradient the clip removed, by bound), policy_kl_old_sum (k3 of pi_old || pi), policy_ratio_sum,
    policy_ratio_square_sum, policy_entropy_sum, policy_kl_ref_sum, policy_weight_sum, policy_weight_capped_sum,
    engine_difference_sum (|old - engine|); those without their input are left out.
    """
    mask_T = response_mask_T
    zero_T = torch.zeros_like(logprobs_T)
    new_T = torch.where(mask_T, logprobs_T, zero_T)
    old_T = new_T.detach() if old_logprobs_T is None else torch.where(mask_T, old_logprobs_T, zero_T)
    advantages_T = torch.where(mask_T, advantages_T, zero_T)
    log_ratio_T = (new_T - old_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_T = log_ratio_T.exp()
    clipped_T = ratio_T.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    pg_T = torch.maximum(-advantages_T * ratio_T, -advantages_T * clipped_T)
    stats: dict[str, Tensor] = {}
    if engine_logprobs_T is not None:
        difference_T = old_T.detach() - torch.where(mask_T, engine_logprobs_T, zero_T)
        stats["engine_difference_sum"] = _total(difference_T.abs(), mask_T)
    if config.importance_cap is not None:
        assert engine_logprobs_T is not None, "importance_cap needs the engine's log-probs"
        raw_T = difference_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        weight_T = raw_T.clamp(max=config.importance_cap)
        pg_T = weight_T * pg_T
        stats["policy_weight_sum"] = _total(weight_T, mask_T)
        stats["policy_weight_capped_sum"] = _total(raw_T > config.importance_cap, mask_T)
    loss_T = pg_T
    if config.entropy_coef != 0.0:
        assert entropy_T is not None, "the entropy bonus needs the entropy"
        loss_T = loss_T - config.entropy_coef * torch.where(mask_T, entropy_T, zero_T)
    if ref_logprobs_T is not None:
        kl_T = kl_estimate(new_T, torch.where(mask_T, ref_logprobs_T, zero_T), config.kl_estimator)
        stats["policy_kl_ref_sum"] = _total(kl_T, mask_T)
        if config.kl_place is KlPlace.loss:
            loss_T = loss_T + config.kl_coef * kl_T
    assert config.kl_place is not KlPlace.loss or ref_logprobs_T is not None, "the KL loss needs the reference"
    if entropy_T is not None:
        stats["policy_entropy_sum"] = _total(torch.where(mask_T, entropy_T, zero_T), mask_T)
    stats |= _ratio_stats(log_ratio_T, pg_T, advantages_T, mask_T, config)
    return torch.where(mask_T, loss_T, zero_T).sum() / num_tokens, stats


def _ratio_stats(
    log_ratio_T: Tensor, pg_T: Tensor, advantages_T: Tensor, mask_T: Tensor, config: PolicyAlgorithm
) -> dict[str, Tensor]:
    """Sums over response tokens that need no optional input."""
    with torch.no_grad():
        ratio_T = log_ratio_T.exp()
        return {
            "policy_num_tokens": mask_T.double().sum(),
            "policy_pg_loss_sum": _total(pg_T, mask_T),
            "policy_clip_low_sum": _total((ratio_T < 1.0 - config.clip_low) & (advantages_T < 0.0), mask_T),
            "policy_clip_high_sum": _total((ratio_T > 1.0 + config.clip_high) & (advantages_T > 0.0), mask_T),
            "policy_kl_old_sum": _total(torch.expm1(log_ratio_T.double()) - log_ratio_T.double(), mask_T),
            "policy_ratio_sum": _total(ratio_T, mask_T),
            "policy_ratio_square_sum": _total(ratio_T.double().square(), mask_T),
        }


def _total(values_T: Tensor, mask_T: Tensor) -> Tensor:
    return torch.where(mask_T, values_T.detach().double(), 0.0).sum()
