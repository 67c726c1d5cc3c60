"""What layers without Transformer Engine compute on a CPU, against its definitions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from prime_megatron.mcore.cpu import linear, swiglu
from prime_megatron.mcore.cpu.attention import PackedAttention
from prime_megatron.mcore.cpu.norm import RMSNorm
from prime_megatron.mcore.cpu.rotary import rotary_table, rotate
from prime_megatron.mcore.cpu.swiglu import SwiGLU


def test_swiglu_is_its_definition_with_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    module = SwiGLU(None)
    expected = x[..., :3] / (1.0 + (-x[..., :3]).exp()) * x[..., 3:]
    torch.testing.assert_close(module(x), expected)
    assert torch.autograd.gradcheck(module, x)


def test_swiglu_in_blocks_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swiglu, "BLOCK_ELEMENTS", 2 * 3)
    torch.manual_seed(0)
    x = 20.0 * torch.randn(5, 1, 6)
    grad = torch.randn(5, 1, 3)
    whole = x.double().requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.silu(whole[..., :3]) * whole[..., 3:], whole, grad.double())[0]
    x.requires_grad_()
    got = torch.autograd.grad(SwiGLU(None)(x), x, grad)[0]
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)


def test_rms_norm_is_its_definition_with_its_gradient() -> None:
    torch.manual_seed(0)
    module = RMSNorm(SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False), 6, eps=0.1)
    x, grad = torch.randn(5, 2, 6, requires_grad=True), torch.randn(5, 2, 6)
    torch.nn.init.normal_(module.weight)
    wide, weight = x.detach().double().requires_grad_(), module.weight.detach().double().requires_grad_()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    got = module(x)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    for one, two in zip(
        torch.autograd.grad(got, (x, module.weight), grad),
        torch.autograd.grad(expected, (wide, weight), grad.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)


def test_rotary_turns_pairs_by_their_angles() -> None:
    torch.manual_seed(0)
    positions, frequencies = torch.tensor([0, 1, 2, 0, 7]), torch.tensor([1.0, 0.25, 0.1], dtype=torch.float64)
    table = rotary_table(positions, frequencies, torch.float64)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    turned = torch.view_as_complex(torch.stack([x[..., :3], x[..., 3:]], -1).detach())
    turned = turned * torch.exp(1j * positions[:, None] * frequencies)[:, None]
    torch.testing.assert_close(rotate(x, table), torch.cat([turned.real, turned.imag], -1))
    assert torch.autograd.gradcheck(lambda x: rotate(x, table), x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("main_grad", [False, True])
def test_linear_is_its_definition_with_its_gradients(main_grad: bool, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 1, 128, requires_grad=True), torch.nn.Parameter(torch.randn(160, 128) / 10)
    offset = torch.randn(160, requires_grad=True) if bias else None
    assert linear.uses_onednn(x, weight)
    grad = torch.randn(7, 1, 160)
    before = torch.randn(160, 128)
    if main_grad:
        weight.main_grad, weight.grad_added_to_main_grad = before.clone(), False
    out = linear._Linear.apply(x, weight, offset)
    out.backward(grad)
    expected = x.double() @ weight.double().T + (0.0 if offset is None else offset.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), grad.double() @ weight.double(), rtol=1e-5, atol=1e-5)
    got = weight.main_grad - before if main_grad else weight.grad
    torch.testing.assert_close(got.double(), grad[:, 0].double().T @ x[:, 0].double(), rtol=1e-5, atol=1e-5)
    assert not main_grad or weight.grad_added_to_main_grad
    if offset is not None:
        torch.testing.assert_close(offset.grad, grad.sum((0, 1)))


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
    sizes = {"kv_channels": 8, "window_attn_skip_freq": None}
    config = SimpleNamespace(**sizes, window_size=None if window is None else (window - 1, 0))
    module = PackedAttention(config, 1, None, "self", softmax_scale=0.3, pg_collection=SimpleNamespace(cp=None))
    got, expected = module._loop(q, k, v, lengths), attend(q, k, v, lengths, window)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    for one, two in zip(
        torch.autograd.grad(got, (q, k, v), direction), torch.autograd.grad(expected, (q, k, v), direction), strict=True
    ):
        torch.testing.assert_close(one, two)
