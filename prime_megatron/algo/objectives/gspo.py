"""GSPO: one importance ratio for a whole response (arXiv 2507.18071).

    s_i = exp(mean over the response's tokens of log ratio)                                             equation 7
    loss_i = max(-A_i s_i, -A_i clip(s_i, 1 - clip_low, 1 + clip_high))                                 equation 5

Written token by token as the paper's GSPO-token (equations 13 and 14), s_t = sg[s_i] * p_t / sg[p_t], so that tokens of
one response may have advantages of their own (process rewards). With one advantage a response and
policy.loss_aggregation sequence_mean, value and gradient are those of equation 5.
"""

from __future__ import annotations

import torch

from prime_megatron.algo.kl import clamped_ratio
from prime_megatron.algo.objectives.base import ObjectiveTokens, Surrogate


def gspo(tokens: ObjectiveTokens) -> Surrogate:
    """loss_t = max(-A_t s_t, -A_t clip(s_t)). Figure sequence_ratio: s_i."""
    sequence_t = clamped_ratio(tokens.sequence_mean(tokens.log_ratio_t)).detach()
    ratio_t = sequence_t * torch.exp(tokens.logprobs_t - tokens.logprobs_t.detach())
    free_t, held_t = -tokens.advantages_t * ratio_t, -tokens.advantages_t * tokens.clipped(ratio_t)
    clipped_t = held_t > free_t
    return Surrogate(
        torch.maximum(free_t, held_t),
        low_t=clipped_t & (tokens.advantages_t <= 0),
        high_t=clipped_t & (tokens.advantages_t > 0),
        figures={"sequence_ratio": sequence_t},
    )
