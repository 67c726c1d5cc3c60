"""Core attention over packed sequences, for CPU and for GPUs without Transformer Engine.

Shapes: t tokens of all sequences one after the other, n query heads and g key-value heads of this rank, d
head size. Under context parallelism each rank holds, of every sequence, chunks r and 2 * cp - 1 - r of 2 * cp
equal chunks (Megatron's load balance for causal attention); keys and values are gathered, queries stay.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor

from prime_megatron.mcore.cpu.rotary import rotate
from prime_megatron.mcore.packed import Packed


class _GatherSequence(torch.autograd.Function):
    """Concatenates over the context ranks; the backward sums the gradients and returns this rank's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        out = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad, group=ctx.group)
        return out, None


@functools.cache
def varlen_backend() -> str:
    """The attention used on CUDA for bf16: "torch varlen", "flash-attn varlen" or "sdpa loop"."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        if {"window_size", "scale"} <= inspect.signature(varlen_attn).parameters.keys():  # not in its first release
            return "torch varlen"
    if importlib.util.find_spec("flash_attn") is not None:
        return "flash-attn varlen"
    return "sdpa loop"


def _causal_mask(queries: range, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool [queries, num_keys], True where a query may look; queries are positions in the sequence."""
    q = torch.arange(queries.start, queries.stop, device=device)[:, None]
    k = torch.arange(num_keys, device=device)[None, :]
    mask = k <= q
    return mask if window is None else mask & (k > q - window)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """One sequence: q [s, n, d], k and v [s', g, d] -> [s, n, d]; causal from the start where there is no mask."""
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


class PackedAttention(torch.nn.Module):
    """Causal attention within each packed sequence; takes megatron's CoreAttention arguments.

    Source of the maths: softmax(q k^T * scale) v (Vaswani et al. 2017), grouped keys and values (Ainslie et
    al. 2023). Sliding window w: a query sees itself and the w - 1 tokens before it.
    """

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, **kwargs: Any):
        super().__init__()
        softmax_scale = kwargs["softmax_scale"]
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] + 1 if windowed else None
        self.cp_group = kwargs["pg_collection"].cp
        self.backend = varlen_backend()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        /,
        *,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [t, n, d], key and value [t, g, d] -> [t, n * d]."""
        assert isinstance(packed_seq_params, Packed), "the model takes packed sequences only"
        assert attention_bias is None
        if packed_seq_params.rotary is not None:
            query, key = (rotate(x, packed_seq_params.rotary) for x in (query, key))
        if self.cp_group.size() > 1:
            out = self._context_parallel(query, key, value, packed_seq_params)
        elif query.is_cuda and query.dtype is not torch.float32 and self.backend != "sdpa loop":
            out = self._varlen(query, key, value, packed_seq_params)
        else:
            out = self._loop(query, key, value, packed_seq_params.lengths)
        return out.reshape(out.shape[0], -1)

    def _loop(self, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        windowed = self.window is not None and max(lengths) > self.window
        if len(set(lengths)) == 1 and lengths[0] > 0 and not windowed:
            return self._equal(q, k, v, lengths[0])
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        outs = []
        for q_s, k_s, v_s in parts:
            if len(q_s) == 0:
                continue
            windowed = self.window is not None and len(q_s) > self.window
            mask = _causal_mask(range(len(q_s)), len(k_s), self.window, q.device) if windowed else None
            outs.append(_sdpa(q_s, k_s, v_s, self.scale, mask))
        return torch.cat(outs)

    def _equal(self, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        """Sequences of one length, such as padded ones or those that all ran into the limit: one call for all."""
        out = F.scaled_dot_product_attention(
            *(x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)),
            is_causal=True,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.transpose(1, 2).reshape(q.shape)

    def _context_parallel(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
        size, rank = self.cp_group.size(), self.cp_group.rank()
        local = [length // size for length in packed.lengths]
        # [cp, t, g, d]: rank j's share of every sequence.
        keys, values = (_GatherSequence.apply(x, self.cp_group).view(size, *x.shape) for x in (k, v))
        order = [i if i < size else 2 * size - 1 - i for i in range(2 * size)]
        outs = []
        start = 0
        for length in local:
            half = length // 2
            q_s = q[start : start + length]
            k_s, v_s = (
                torch.cat(
                    [
                        x[owner, start + (half if i >= size else 0) : start + (length if i >= size else half)]
                        for i, owner in enumerate(order)
                    ]
                )
                for x in (keys, values)
            )
            for part, chunk in ((q_s[:half], rank), (q_s[half:], 2 * size - 1 - rank)):
                stop = (chunk + 1) * half
                mask = _causal_mask(range(chunk * half, stop), stop, self.window, q.device)
                outs.append(_sdpa(part, k_s[:stop], v_s[:stop], self.scale, mask))
            start += length
        return torch.cat(outs)

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
        longest = max(packed.lengths)
        window = (-1, 0) if self.window is None else (self.window - 1, 0)
        if self.backend == "torch varlen":
            from torch.nn.attention import varlen

            attend: Any = varlen.varlen_attn
            grouped: dict[str, bool] = {}
            if q.shape[1] != k.shape[1]:
                if "enable_gqa" in inspect.signature(attend).parameters:
                    grouped["enable_gqa"] = True
                else:
                    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            return attend(
                q,
                k,
                v,
                packed.cu_seqlens_q,
                packed.cu_seqlens_kv,
                longest,
                longest,
                scale=self.scale,
                window_size=window,
                **grouped,
            )
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            packed.cu_seqlens_q,
            packed.cu_seqlens_kv,
            longest,
            longest,
            softmax_scale=self.scale,
            causal=True,
            window_size=(-1, -1) if self.window is None else window,
        )
