"""The gated activation, and attention over sequences of one length, against their definitions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from prime_megatron.mcore.attention import PackedAttention
from prime_megatron.mcore.swiglu import SwiGLU


def test_swiglu_is_its_definition_with_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    module = SwiGLU(None)
    expected = x[..., :3] / (1.0 + (-x[..., :3]).exp()) * x[..., 3:]
    torch.testing.assert_close(module(x), expected)
    assert torch.autograd.gradcheck(module, x)


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], window: int | None) -> Tensor:
    """softmax over every token's visible ones, one token and head at a time."""
    rows, start = [], 0
    for length in lengths:
        for t in range(length):
            first = start if window is None else max(start, start + t - window + 1)
            seen = slice(first, start + t + 1)
            heads = []
            for head in range(q.shape[1]):
                shared = head // (q.shape[1] // k.shape[1])
                weights = torch.softmax(k[seen, shared] @ q[start + t, head] * 0.3, 0)
                heads.append(weights @ v[seen, shared])
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5,), (4, 0, 7), (1, 1)])
def test_packed_attention(lengths: tuple[int, ...], window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(total, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    config = SimpleNamespace(kv_channels=8, window_size=None if window is None else (window - 1, 0))
    module = PackedAttention(config, 1, None, "self", softmax_scale=0.3, pg_collection=SimpleNamespace(cp=None))
    got, expected = module._loop(q, k, v, lengths), attend(q, k, v, lengths, window)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    for one, two in zip(
        torch.autograd.grad(got, (q, k, v), direction), torch.autograd.grad(expected, (q, k, v), direction), strict=True
    ):
        torch.testing.assert_close(one, two)
