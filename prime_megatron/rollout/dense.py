"""A decode step of a dense Llama-like model over transformers' own weights, without the cost of its modules.

At a decode step every product is small, and most of the time of a module's forward goes into Python and into ten
small tensor operations where two do. Here projections of one input are one product and everything else is as few
operations as torch has. The maths is that of transformers' modules (Touvron et al. 2023); prefill stays theirs.

Legend: B rows in progress, n query heads, g key heads, D head size, L cached positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

from prime_megatron.rollout.static_cache import RowCache

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length."""


@dataclass(frozen=True)
class _Joined:
    """Projections of one input: their weights, one below the other, share memory with the model's parameters."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, parts: Sequence[nn.Linear]) -> _Joined:
        weight = _share([part.weight for part in parts])
        biases = [part.bias for part in parts]
        return cls(weight, None if biases[0] is None else _share(biases))

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _share(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Lay the parameters into one tensor; each becomes a view of its rows."""
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, rows in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = rows
    return whole


class DenseDecoder:
    """The decode step of one model; see ``supports``."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self._model = model
        self._key_heads = config.num_key_value_heads
        self._query_heads = config.num_attention_heads
        window = getattr(config, "sliding_window", None)
        self.positions: float = math.inf if window is None else window
        """Longest sequence that it decodes: no sliding window cuts it."""
        layers = model.base_model.layers
        self._qkv = [_Joined.of((a.q_proj, a.k_proj, a.v_proj)) for a in (layer.self_attn for layer in layers)]
        self._gate_up = [_Joined.of((layer.mlp.gate_proj, layer.mlp.up_proj)) for layer in layers]

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether the model's layers are the ones written here, up to `positions`."""
        config = model.config
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        return config.model_type in MODEL_TYPES and config.hidden_act == "silu" and rope in FIXED_ROPE

    def rotary(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of positions 0 .. positions - 1, [positions, D]: x cos + swapped(x) sin turns x."""
        like = self._model.get_input_embeddings().weight
        index = torch.arange(positions, device=like.device).unsqueeze(0)
        cos, sin = self._model.base_model.rotary_emb(like, index)
        first, second = sin[0].chunk(2, -1)
        return cos[0], torch.cat([-first, second], -1)

    def step(
        self, token_B: Tensor, position_B: Tensor, rotary: tuple[Tensor, Tensor], visible_BL: Tensor, cache: RowCache
    ) -> Tensor:
        """Logits [B, V] of the next token; the cache is told where to write (``RowCache.at``).

        visible_BL: bool, the cached positions that each row sees, its new one among them.
        """
        x = self._model.get_input_embeddings()(token_B)
        cos, sin = (table[position_B].unsqueeze(1) for table in rotary)
        mask = torch.zeros(visible_BL.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible_BL, -torch.inf)
        base = self._model.base_model
        for index, layer in enumerate(base.layers):
            x = self._attend(index, layer, x, cos, sin, mask[:, None, None], cache)
            gate, up = self._gate_up[index](_norm(layer.post_attention_layernorm, x)).chunk(2, -1)
            x = _add_product(x, silu(gate).mul_(up), layer.mlp.down_proj)
        return linear(_norm(base.norm, x), self._model.get_output_embeddings().weight)

    def _attend(
        self, index: int, layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: RowCache
    ) -> Tensor:
        n, g, attention = self._query_heads, self._key_heads, layer.self_attn
        qkv = self._qkv[index](_norm(layer.input_layernorm, x)).view(len(x), n + 2 * g, -1)
        turning = qkv[:, : n + g]
        if hasattr(attention, "q_norm"):
            turning = torch.cat([_norm(attention.q_norm, qkv[:, :n]), _norm(attention.k_norm, qkv[:, n : n + g])], 1)
        turned = torch.addcmul(turning * cos, turning.roll(turning.shape[-1] // 2, -1), sin)
        keys, values = cache.write(index, turned[:, n:], qkv[:, n + g :])
        # The query heads that share a key head become queries of it, so grouped keys are never copied.
        grouped = turned[:, :n].reshape(len(x), g, n // g, -1)
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=attention.scaling)
        return _add_product(x, out.reshape(len(x), -1), attention.o_proj)


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    """RMS norm; in bfloat16 in the module's own order of roundings."""
    if x.dtype is not torch.float32:
        return module(x)
    return rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _add_product(x: Tensor, inner: Tensor, projection: nn.Linear) -> Tensor:
    """x plus the projection of inner, in one operation where the dtype loses nothing by it."""
    if projection.bias is not None or x.dtype is not torch.float32:
        return x + projection(inner)
    return torch.addmm(x, inner, projection.weight.t())
