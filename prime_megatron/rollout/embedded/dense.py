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
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

from prime_megatron.rollout.embedded.cache import RowCache

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


class _Norm:
    """RMS norm; in bfloat16 in the module's own order of roundings."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._weight, self._eps = module, module.weight, module.variance_epsilon
        self._shape = list(module.weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            return self._module(x)
        return torch.rms_norm(x, self._shape, self._weight, self._eps)


class _Output:
    """A projection whose result is added to the residual: one operation where the dtype loses nothing by it."""

    def __init__(self, projection: nn.Linear) -> None:
        self._projection, self._transposed = projection, projection.weight.data.t()
        self._fused = projection.bias is None and self._transposed.dtype is torch.float32

    def __call__(self, x: Tensor, inner: Tensor) -> Tensor:
        return torch.addmm(x, inner, self._transposed) if self._fused else x + self._projection(inner)


class _Layer:
    """A layer's parameters, found once: to look them up in modules at every step would cost a tenth of it."""

    def __init__(self, layer: nn.Module) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Joined.of((attention.q_proj, attention.k_proj, attention.v_proj))
        self.gate_up = _Joined.of((mlp.gate_proj, mlp.up_proj))
        self.output, self.down = _Output(attention.o_proj), _Output(mlp.down_proj)
        self.before_attention, self.before_mlp = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        has_head_norms = hasattr(attention, "q_norm")
        self.head_norms = (_Norm(attention.q_norm), _Norm(attention.k_norm)) if has_head_norms else None
        self.scaling: float = attention.scaling


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
        self._layers = [_Layer(layer) for layer in model.base_model.layers]
        self._last_norm = _Norm(model.base_model.norm)

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
        for index, layer in enumerate(self._layers):
            x = self._attend(index, layer, x, cos, sin, mask[:, None, None], cache)
            gate, up = layer.gate_up(layer.before_mlp(x)).chunk(2, -1)
            x = layer.down(x, silu(gate).mul_(up))
        return linear(self._last_norm(x), self._model.get_output_embeddings().weight)

    def _attend(
        self, index: int, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: RowCache
    ) -> Tensor:
        n, g = self._query_heads, self._key_heads
        qkv = layer.qkv(layer.before_attention(x)).view(len(x), n + 2 * g, -1)
        turning = qkv[:, : n + g]
        if layer.head_norms is not None:
            of_queries, of_keys = layer.head_norms
            turning = torch.cat([of_queries(qkv[:, :n]), of_keys(qkv[:, n : n + g])], 1)
        turned = torch.addcmul(turning * cos, turning.roll(turning.shape[-1] // 2, -1), sin)
        keys, values = cache.write(index, turned[:, n:], qkv[:, n + g :])
        # The query heads that share a key head become queries of it, so grouped keys are never copied.
        grouped = turned[:, :n].reshape(len(x), g, n // g, -1)
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=layer.scaling)
        return layer.output(x, out.reshape(len(x), -1))
