"""The critic's loss (estimator gae)."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values_T: Tensor,
    old_values_T: Tensor,
    returns_T: Tensor,
    response_mask_T: Tensor,
    num_tokens: int,
    clip: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped squared error of one micro-batch, already divided by num_tokens, and its statistics.

    L = (1/M) * sum_t max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2) / 2 over the M response tokens of
    the mini-batch of all ranks; c None: no clip. values_T: [T], with gradient; old_values_T: the values that gae used;
    returns_T: Advantages.returns_T; response_mask_T: bool. Statistics are float64 sums over response tokens:
    value_num_tokens, value_loss_sum, value_clipped_sum, value_sum, value_error_sum (|V - R|), and for the explained
    variance value_residual_square_sum, value_return_sum, value_return_square_sum.
    """
    mask_T = response_mask_T
    zero_T = torch.zeros_like(values_T)
    new_T = torch.where(mask_T, values_T, zero_T)
    old_T = torch.where(mask_T, old_values_T, zero_T)
    target_T = torch.where(mask_T, returns_T, zero_T)
    plain_T = (new_T - target_T).square()
    loss_T = plain_T
    if clip is not None:
        cut_T = torch.minimum(torch.maximum(new_T, old_T - clip), old_T + clip)
        loss_T = torch.maximum(plain_T, (cut_T - target_T).square())
    loss_T = 0.5 * loss_T
    with torch.no_grad():
        residual_T = target_T.double() - new_T.double()
        stats = {
            "value_num_tokens": mask_T.double().sum(),
            "value_loss_sum": loss_T.double().sum(),
            "value_clipped_sum": (2.0 * loss_T > plain_T).double().sum(),
            "value_sum": new_T.double().sum(),
            "value_error_sum": residual_T.abs().sum(),
            "value_residual_square_sum": residual_T.square().sum(),
            "value_return_sum": target_T.double().sum(),
            "value_return_square_sum": target_T.double().square().sum(),
        }
    return loss_T.sum() / num_tokens, stats
