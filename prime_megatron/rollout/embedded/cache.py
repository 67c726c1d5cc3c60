"""The embedded engine's KV cache, and the attention function that transformers' modules call over it.

Rows are left-aligned: row b owns positions 0 .. position_b, and a mask hides the rest, so that rows of any length
decode together without left padding.

Legend: B rows in progress, H key heads, L cached positions, D head size, P prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "prime_static"
"""The attention's name in transformers' registry (attn_implementation)."""
ATTENTION_KINDS = {"full_attention", "sliding_attention"}
"""What a layer may do (config.layer_types)."""


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it: causal over a prompt (no mask), or one new token per row over its cache.

    In decode the query heads that share a key head become queries of it, so grouped keys are never copied.
    sliding_window: tokens that a token sees, itself among them.
    """
    positions = key.shape[2]
    window = sliding_window if sliding_window is not None and sliding_window < positions else None
    if attention_mask is None:
        mask = None if window is None else _window(positions, window, query.device)
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2), None
    if window is not None:
        # A row sees a prefix of its positions, so their count tells where its newest token is.
        first = attention_mask.sum(-1, keepdim=True) - window
        attention_mask = attention_mask & (torch.arange(positions, device=query.device) >= first)
    B, heads, _, D = query.shape
    grouped = query.reshape(B, key.shape[1], heads // key.shape[1], D)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(B, 1, heads, D), None


def _window(positions: int, size: int, device: torch.device) -> Tensor:
    """bool [positions, positions]: which earlier ones, and itself, each one sees."""
    return torch.ones(positions, positions, dtype=torch.bool, device=device).tril().triu(1 - size)


AttentionInterface.register(ATTENTION, _attention)


class PromptCache:
    """Catches the keys and values of a prefill, [P, H, L, D] per layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        assert layer == len(self.layers)
        self.layers.append((key, value))
        return key, value


class RowCache:
    """Keys and values of the rows, per layer [rows, H, positions, D]; zeros, so that masked positions stay finite."""

    def __init__(self, rows: int, positions: int) -> None:
        self.shape = (rows, positions)
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.row_B = torch.empty(0, dtype=torch.long)
        self.position_B = torch.empty(0, dtype=torch.long)
        self.visible = 0

    def at(self, position_B: Tensor, visible: int) -> None:
        """The next update writes row b at position_B[b] and shows the first `visible` positions."""
        self.row_B = torch.arange(position_B.numel(), device=position_B.device)
        self.position_B, self.visible = position_B, visible

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return self.write(layer, key[:, :, 0], value[:, :, 0])

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one position a row, [B, H, D], where `at` said; the visible keys and values, [B, H, L, D]."""
        self._allocate(layer, key, value)
        rows, (keys, values) = key.shape[0], self.layers[layer]
        keys[self.row_B, :, self.position_B] = key
        values[self.row_B, :, self.position_B] = value
        return keys[:rows, :, : self.visible], values[:rows, :, : self.visible]

    def fill(self, first_row: int, prompts: PromptCache, source_B: Tensor) -> None:
        """Copy prompt source_B[b] into row first_row + b."""
        last, length = first_row + source_B.numel(), prompts.layers[0][0].shape[2]
        for layer, (key, value) in enumerate(prompts.layers):
            self._allocate(layer, key, value)
            keys, values = self.layers[layer]
            keys[first_row:last, :, :length] = key[source_B]
            values[first_row:last, :, :length] = value[source_B]

    def keep(self, row_B: Tensor, visible: int) -> None:
        """Move rows row_B (ascending) to the front."""
        for keys, values in self.layers:
            keys[: row_B.numel(), :, :visible] = keys[row_B, :, :visible]
            values[: row_B.numel(), :, :visible] = values[row_B, :, :visible]

    def _allocate(self, layer: int, key: Tensor, value: Tensor) -> None:
        if layer == len(self.layers):
            rows, positions = self.shape
            self.layers.append(
                tuple(like.new_zeros(rows, like.shape[1], positions, like.shape[-1]) for like in (key, value))
            )
