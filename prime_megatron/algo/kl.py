"""Two models at the same sampled token: probability ratio, importance weight and KL from their log-ratio.

Every exponential of a log-ratio that a run takes is taken here, behind one clamp: beyond MAX_LOG_RATIO a value stays
what it is at the clamp and its gradient is 0, so that one stray token (an old log-prob of -100, say) can neither make
a loss infinite nor fill the whole gradient. Below the clamp nothing changes. The clamp is e^20, 4.9e8: no ratio that
training can use is near it, and the square of it is far from float32's largest number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.config.algorithm import KlEstimator

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here, from above, before exp."""


def clamped_ratio(log_ratio_T: Tensor) -> Tensor:
    """exp(min(log_ratio, MAX_LOG_RATIO)): [T]; its gradient is 0 beyond the clamp."""
    return log_ratio_T.clamp(max=MAX_LOG_RATIO).exp()


def beyond_clamp(log_ratio_T: Tensor) -> Tensor:
    """Where ``clamped_ratio`` holds the ratio: bool [T]."""
    return log_ratio_T > MAX_LOG_RATIO


def kl_estimate(log_ratio_T: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(p || q) from one token sampled from p, [T], nats; differentiable. With d = log p - log q:

    k1 = d; unbiased, its expected gradient as a loss is 0, so it belongs in the reward.
    k2 = d^2 / 2; biased, low variance, its gradient as a loss is the KL's.
    k3 = exp(-d) - 1 + d; unbiased, never negative.

    Schulman, joschu.net/blog/kl-approx.html.
    """
    if estimator is KlEstimator.k1:
        return log_ratio_T
    if estimator is KlEstimator.k2:
        return 0.5 * log_ratio_T.square()
    cut_T = (-log_ratio_T).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(cut_T) - cut_T


def kl_slope(log_ratio_T: Tensor, estimator: KlEstimator) -> Tensor:
    """Derivative of ``kl_estimate`` in log_ratio_T, so in log p: [T]."""
    if estimator is KlEstimator.k1:
        return torch.ones_like(log_ratio_T)
    if estimator is KlEstimator.k2:
        return log_ratio_T.clone()
    return torch.where(beyond_clamp(-log_ratio_T), 0.0, -torch.expm1((-log_ratio_T).clamp(max=MAX_LOG_RATIO)))
