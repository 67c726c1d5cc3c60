"""KL(policy || reference) from one sample per token (Schulman, "Approximating KL divergence")."""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.config.algorithm import KlEstimator

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here before exp, so that one stray token cannot make the loss infinite."""


def kl_estimate(logprobs_T: Tensor, ref_logprobs_T: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate, [T], nats; differentiable in logprobs_T. With d = log policy - log reference:

    k1 = d; unbiased, its expected gradient as a loss is 0, so it belongs in the reward.
    k2 = d^2 / 2; biased, low variance, its gradient as a loss is the KL's.
    k3 = exp(-d) - 1 + d; unbiased, never negative.
    """
    log_ratio_T = logprobs_T - ref_logprobs_T
    if estimator is KlEstimator.k1:
        return log_ratio_T
    if estimator is KlEstimator.k2:
        return 0.5 * log_ratio_T.square()
    cut_T = log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(-cut_T) + log_ratio_T
