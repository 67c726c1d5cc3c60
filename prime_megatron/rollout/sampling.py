"""Drawing tokens: one uniform number per token from a counter-based stream, and the inverse CDF.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN = 0
EVAL = 1


@dataclass(frozen=True)
class SampleKey:
    """Names the random stream of one response; all integers at least 0 and below 2**64."""

    seed: int
    step: int
    draw: int
    """The prompt: `Prompt.draw` in training, the row in evaluation."""
    sample: int
    purpose: int = TRAIN
    """TRAIN or EVAL: their streams never meet."""


def uniforms(key: SampleKey, count: int) -> np.ndarray:
    """The first `count` numbers of a stream, float64 in [0, 1).

    Philox 4x64 (Salmon et al., SC 2011) keyed by (seed, step); draw, sample and purpose are the upper words of its
    counter and the block number is the lowest, so no two streams share a block. A longer call starts with the
    shorter one's numbers.
    """
    generator = np.random.Philox(
        key=np.array([key.seed, key.step], dtype=np.uint64),
        counter=np.array([0, key.purpose, key.draw, key.sample], dtype=np.uint64),
    )
    return np.random.Generator(generator).random(count)


def nucleus(logprobs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Log-probs cut to the smallest set of likeliest tokens whose mass reaches top_p, renormalised.

    -inf outside the set; the likeliest token always stays.
    """
    sorted_BV, order_BV = logprobs_BV.exp().double().sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    outside_BV = before_BV >= top_p_B.double().unsqueeze(-1)
    outside_BV[:, 0] = False
    outside_BV = torch.zeros_like(outside_BV).scatter(-1, order_BV, outside_BV)
    return logprobs_BV.masked_fill(outside_BV, -torch.inf).log_softmax(-1)


def inverse_cdf(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the cumulative probability first exceeds uniform * total, int64 [B].

    The sum runs in float64 in the order of token ids; a token of probability 0 is never drawn. Where the probabilities
    are no numbers it is the last token.
    """
    cdf_BV = logprobs_BV.exp().double().cumsum(-1)
    total_B1 = cdf_BV[:, -1:]
    target_B1 = torch.minimum(uniform_B.unsqueeze(-1) * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    token_B = torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(-1)
    return token_B.clamp_max(cdf_BV.shape[-1] - 1)


def draw(
    logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor | None, greedy_B: Tensor | None, uniform_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Next token (int64 [B]) and its log-prob (float32 [B]), see `Completion.logprobs`.

    top_p_B None: 1 in all rows; greedy_B None: no row is greedy. Uniforms are float64. A row whose logits are no
    numbers has a log-prob that is none, whatever its token.
    """
    logprobs_BV = (logits_BV.float() / temperature_B.unsqueeze(-1)).log_softmax(-1)
    sampled_BV = logprobs_BV
    if top_p_B is not None:
        sampled_BV = torch.where((top_p_B < 1).unsqueeze(-1), nucleus(logprobs_BV, top_p_B), logprobs_BV)
    token_B = inverse_cdf(sampled_BV, uniform_B)
    chosen_B = sampled_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1)
    if greedy_B is not None:
        best_B = logprobs_BV.argmax(-1)
        token_B = torch.where(greedy_B, best_B, token_B)
        chosen_B = torch.where(greedy_B, logprobs_BV.gather(-1, best_B.unsqueeze(-1)).squeeze(-1), chosen_B)
    return token_B, chosen_B
