"""PPO with a second clip for negative advantages (arXiv 1912.09729, equation 5)."""

from __future__ import annotations

import torch

from prime_megatron.algo.objectives.base import ObjectiveTokens, Surrogate
from prime_megatron.algo.objectives.ppo import ppo


def dual_clip(tokens: ObjectiveTokens) -> Surrogate:
    """loss_t = min(PPO's, -c A) where A < 0, else PPO's: a token whose ratio has run beyond c teaches nothing.

    Figure dual_clip: tokens that the second clip holds.
    """
    plain, bound_t = ppo(tokens), -tokens.dual_clip * tokens.advantages_t
    held_t = (tokens.advantages_t < 0) & (plain.loss_t > bound_t)
    loss_t = torch.where(held_t, bound_t, plain.loss_t)
    return Surrogate(loss_t, low_t=plain.low_t, high_t=plain.high_t, figures={"dual_clip": held_t})
