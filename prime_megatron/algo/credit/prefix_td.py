"""Credit by differences of the prefix's value (IPVRM, arXiv 2604.13197, equation 13 and appendix C; its public
code).

For response token t of a response with last token L, over the M response tokens of all ranks:

    x_t = r_t for t < L, x_L = 0                      r_t = beta * q_t is the difference of two prefix values
    V_t = sum_{s <= t} x_s
    d_t = (x_t - mean x) / max(std V, 1e-6)           std over M, not Bessel-corrected
    A_t = sum_{s >= t} (gamma * lambda)^(s - t) d_s   GAE whose deltas are d; gamma_process and gae_lambda
    result: A whitened over all response tokens

The last token (the end of the sequence, most often) is where a value jumps to the outcome, which the outcome's own
part already pays for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.credit.base import CreditTokens
from prime_megatron.algo.segments import discounted_sum, last_mask, running_sum
from prime_megatron.algo.whitening import whiten

DEVIATION_EPS = 1e-6


def prefix_td(tokens: CreditTokens) -> Tensor:
    """The table above; calls reduce.sum four times."""
    batch, reduce = tokens.batch, tokens.reduce
    mask_T, sequence_T, count = batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel()
    gain_T = torch.where(last_mask(mask_T, sequence_T, count) | ~mask_T, 0.0, tokens.rewards_T.double())
    value_T = torch.where(mask_T, running_sum(gain_T, sequence_T, count), 0.0)
    number, gains, values = reduce.sum(torch.stack([mask_T.double().sum(), gain_T.sum(), value_T.sum()]))
    number = number.clamp(min=1.0)
    square = reduce.sum(torch.where(mask_T, value_T - values / number, 0.0).square().sum())
    deviation = (square / number).sqrt().clamp(min=DEVIATION_EPS)
    delta_T = torch.where(mask_T, (gain_T - gains / number) / deviation, 0.0)
    decay = tokens.config.gamma_process * tokens.config.gae_lambda
    return whiten(discounted_sum(delta_T, sequence_T, decay), mask_T, reduce)
