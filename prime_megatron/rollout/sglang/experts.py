"""SGLang's mixture of experts in plain torch (0.5.23, a CPU without AMX) under expert parallelism.

SGLang marks a token's choice of an expert of another rank by the id -1. Its kernels skip those; its plain torch
(`moe_forward_native`) takes -1 for an index and fails. That function is wrapped: it hears of this rank's choices only.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe import fused_moe_native
from torch import Tensor, nn


def skip_foreign_experts() -> None:
    """Let this process's plain torch experts skip ids of -1. At a second call nothing is left to do.

    Legend: T tokens, k choices of a token, H hidden, M choices of experts of this rank.
    """
    native = fused_moe_native.moe_forward_native
    if getattr(native, "skips_foreign_experts", False):
        return

    def forward(layer: nn.Module, x_TH: Tensor, chosen: Any, config: Any) -> Tensor:
        ids_Tk, weights_Tk = chosen.topk_ids, chosen.topk_weights
        token_M, choice_M = (ids_Tk >= 0).nonzero(as_tuple=True)
        sum_TH = torch.zeros_like(x_TH, dtype=torch.float32)
        if len(token_M):
            # One choice a row: SGLang counts a row's choices of one expert once.
            mine = chosen._replace(
                topk_ids=ids_Tk[token_M, choice_M, None], topk_weights=weights_Tk[token_M, choice_M, None]
            )
            sum_TH.index_add_(0, token_M, native(layer, x_TH[token_M], mine, config).float())
        return sum_TH.to(x_TH.dtype)

    forward.skips_foreign_experts = True  # type: ignore[attr-defined]
    # SGLang looks the function up at every call.
    fused_moe_native.moe_forward_native = forward
