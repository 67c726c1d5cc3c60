"""Rotary frequencies of a model, in float32 as transformers makes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prime_megatron.families.base import FamilyConfig, RopeScaling


def inverse_frequencies(config: FamilyConfig) -> Tensor:
    """Rotary inverse frequencies, float32 [head_dim / 2], scaled as the config says.

    Source: Su et al. 2021; linear: Chen et al. 2023 (positions divided by the factor); llama3: the Llama 3.1
    release (low frequencies divided by the factor, high ones kept, a linear blend between); yarn: Peng et al. 2023.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "yarn":
        kept = _yarn_kept(scaling, config.rope_theta, config.head_dim)
        slowed = 1.0 / (scaling.factor * config.rope_theta**exponents)
        return slowed * (1 - kept) + frequencies * kept
    turns = scaling.original_max_positions * frequencies / (2 * torch.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = blend.clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn_kept(scaling: RopeScaling, base: float, dim: int) -> Tensor:
    """The share of each frequency that stays: 1 from beta_fast turns on, 0 below beta_slow, a ramp over dimensions."""

    def dimension(turns: float) -> float:
        """The one that makes so many turns over the original length."""
        return dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def attention_factor(config: FamilyConfig) -> float:
    """What cosines and sines are multiplied by."""
    return 1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor
