"""CISPO: the clipped ratio weighs a token and drops none (arXiv 2506.13585, equations 4 and 5)."""

from __future__ import annotations

from prime_megatron.algo.objectives.base import ObjectiveTokens, Surrogate


def cispo(tokens: ObjectiveTokens) -> Surrogate:
    """loss_t = -sg[clip(r, 1 - clip_low, 1 + clip_high)] A log p. clip_low 1 is no lower bound, as in the paper.

    Figures weight_low and weight_high: tokens whose weight is held at a bound; they keep a gradient.
    """
    ratio_t = tokens.ratio_t.detach()
    weight_t = tokens.clipped(ratio_t)
    return Surrogate(
        -weight_t * tokens.advantages_t * tokens.logprobs_t,
        figures={"weight_low": weight_t > ratio_t, "weight_high": weight_t < ratio_t},
    )
