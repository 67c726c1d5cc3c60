"""Fingerprints and exact comparison against Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.weights import check
from prime_megatron.weights.check import fingerprint, same_bits

MASK = 2**64 - 1


def weight(place: int) -> int:
    """Odd, from the golden ratio, as the module says; Python integers shift a negative number like int64 does."""
    product = ((place + 1) * 0x9E3779B97F4A7C15) & MASK
    signed = product - 2**64 if product >= 2**63 else product
    return (signed ^ (signed >> 29)) | 1


def by_hand(tensor: torch.Tensor) -> int:
    bits = tensor.contiguous().view(torch.int32)
    if tensor.dim() == 1:
        total = sum(int(value) * weight(i) for i, value in enumerate(bits))
    else:
        total = sum(int(v) * weight(i) * weight(2**40 + j) for i, row in enumerate(bits) for j, v in enumerate(row))
    total &= MASK
    return total - 2**64 if total >= 2**63 else total


@settings(deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(0, 5), chunk=st.integers(1, 20), seed=st.integers(0, 100))
def test_fingerprint(rows: int, columns: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows, columns + 2, generator=generator)
    tensor = whole[:, 1:-1] if columns else whole[:, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_CHUNK", chunk)
        assert int(fingerprint(tensor, torch.float32)) == by_hand(tensor)


@settings(deadline=None)
@given(a=st.integers(0, 11), b=st.integers(0, 11), bit=st.integers(0, 31))
def test_one_bit_or_one_exchange_is_seen(a: int, b: int, bit: int) -> None:
    tensor = torch.arange(12.0).view(3, 4)
    flipped = tensor.clone()
    flipped.view(torch.int32).view(-1)[a] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)
    assert fingerprint(flipped, torch.float32) != fingerprint(tensor, torch.float32)
    assert not same_bits(tensor, flipped)
    exchanged = tensor.clone()
    exchanged.view(-1)[[a, b]] = tensor.view(-1)[[b, a]]
    assert bool(fingerprint(exchanged, torch.float32) == fingerprint(tensor, torch.float32)) == (a == b)


def test_casts_and_not_a_number() -> None:
    wide = torch.tensor([[1.0, 1.0000001], [float("nan"), -0.0]])
    narrow = wide.to(torch.bfloat16)
    assert same_bits(wide, narrow) and same_bits(narrow, narrow.float())
    assert not same_bits(narrow, wide), "1.0000001 was rounded"
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert fingerprint(wide, torch.bfloat16) == fingerprint(narrow, torch.bfloat16)
