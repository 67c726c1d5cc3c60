"""Credit by the policy's own gain on its reference (SPRO, arXiv 2507.01551: its masked step advantage).

With r_t = beta * log(policy / reference) of response token t, R_t = sum_{s <= t} r_s:

    A_t = R_t - mean of R_t over the siblings that have a t-th response token, the response itself among them

A token is compared with its siblings' tokens at the same place; where all others have ended there is nothing to
compare with, and A_t = 0. The policy is the one before the step's update, so nothing is differentiated.
"""

from __future__ import annotations

from torch import Tensor

from prime_megatron.algo.credit.base import CreditTokens
from prime_megatron.algo.segments import running_sum, segment_mean


def spro(tokens: CreditTokens) -> Tensor:
    """The formula above; needs no other rank, siblings being together."""
    batch = tokens.batch
    mask_T, sequence_T, count = batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel()
    gained_T = running_sum(tokens.rewards_T.double(), sequence_T, count)
    place_T = (running_sum(mask_T.double(), sequence_T, count).long() - 1).clamp(min=0)
    longest = int(place_T.max()) + 1 if place_T.numel() else 1
    # One bin a group and place; prompt tokens are in bin 0 of their group and count for nothing.
    bin_T = batch.group_N[sequence_T] * longest + place_T
    mean_b = segment_mean(gained_T, mask_T, bin_T, batch.num_groups * longest)
    return gained_T - mean_b[bin_T]
