"""vLLM's mixture of experts on a CPU with plain weights (written against 0.32).

vLLM packs expert weights for its kernel when it starts, in the same shape and never again: neither a write in place
nor its own reload packs what comes, and the kernel would compute nonsense from right bits. Here nothing is packed, and
the experts are plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts


def keep_experts_plain() -> None:
    """To be called before the model is made, once in each of vLLM's processes."""
    CPUUnquantizedExperts.process_weights_after_loading = _leave
    CPUUnquantizedExperts.apply = _apply


def _leave(self: CPUUnquantizedExperts, layer: nn.Module) -> None:
    """Instead of packing."""


def _apply(
    self: CPUUnquantizedExperts,
    output: Tensor,
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: MoEActivation,
    expert_map: Tensor | None,
    apply_router_weight_on_input: bool,
    **_: Any,
) -> None:
    biased = self.w1_bias is not None or self.w2_bias is not None
    if activation is not MoEActivation.SILU or biased or expert_map is not None or apply_router_weight_on_input:
        raise RuntimeError(
            "rollout.engine: vLLM's experts on a CPU are written for SiLU without bias, weighted after the experts and "
            "all of them on every rank; set it to embedded"
        )
    output.copy_(plain_experts(hidden_states, w1, w2, topk_weights, topk_ids))


def plain_experts(x_TH: Tensor, w13_EFH: Tensor, w2_EHI: Tensor, weights_Tk: Tensor, ids_Tk: Tensor) -> Tensor:
    """Weighted sum of the chosen experts' outputs [T, H], added up in float32.

    Legend: T tokens, H hidden, E experts, I expert ffn, F = 2 I (gate rows, then up rows), k choices of a token.
    """
    sum_TH = torch.zeros_like(x_TH, dtype=torch.float32)
    for expert in ids_Tk.unique().tolist():
        token, choice = (ids_Tk == expert).nonzero(as_tuple=True)
        gate, up = linear(x_TH[token], w13_EFH[expert]).chunk(2, -1)
        made = linear(silu(gate) * up, w2_EHI[expert])
        sum_TH.index_add_(0, token, made.float() * weights_Tk[token, choice, None].float())
    return sum_TH.to(x_TH.dtype)
