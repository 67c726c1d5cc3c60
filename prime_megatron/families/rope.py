"""Rotary frequencies of a model."""

from __future__ import annotations

import torch

from prime_megatron.families import FamilyConfig


def inverse_frequencies(config: FamilyConfig) -> torch.Tensor:
    """Rotary inverse frequencies, float32 [head_dim / 2], scaled as the config says.

    Source: Su et al. 2021; linear: Chen et al. 2023 (positions divided by the factor); llama3: the Llama 3.1
    release (low frequencies divided by the factor, high ones kept, a linear blend between).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_positions * frequencies / (2 * torch.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = blend.clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
