"""PPO's clipped surrogate (arXiv 1707.06347, equation 7; clip-higher where the bounds differ, arXiv 2503.14476)."""

from __future__ import annotations

import torch

from prime_megatron.algo.objectives.base import ObjectiveTokens, Surrogate


def ppo(tokens: ObjectiveTokens) -> Surrogate:
    """loss_t = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))."""
    ratio_t, advantages_t = tokens.ratio_t, tokens.advantages_t
    free_t, held_t = -advantages_t * ratio_t, -advantages_t * tokens.clipped(ratio_t)
    clipped_t = held_t > free_t
    return Surrogate(
        torch.maximum(free_t, held_t), low_t=clipped_t & (advantages_t <= 0), high_t=clipped_t & (advantages_t > 0)
    )
