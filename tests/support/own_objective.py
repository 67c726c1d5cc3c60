"""A policy objective that no paper has, for runs that name one of their own."""

from __future__ import annotations

from prime_megatron.algo.objectives import ObjectiveTokens, Surrogate


def cubed(tokens: ObjectiveTokens) -> Surrogate:
    """The advantage times a ratio that the whole response tilts."""
    tilt_t = tokens.sequence_mean(tokens.log_ratio_t**3)
    return Surrogate(-tokens.advantages_t * (tokens.ratio_t + tilt_t), figures={"tilt": tilt_t})
