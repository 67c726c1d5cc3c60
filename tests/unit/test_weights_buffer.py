"""Buckets that another process opens in place."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prime_megatron.weights.buffer import SharedBuffer, open_buffer, pack, packed_bytes, rows_bytes, unpack
from tests.support.buffer_cases import check_two_buffers_by_turns, tensors

CPU = torch.device("cpu")
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.int64]


def test_another_process_reads_what_was_packed_last() -> None:
    check_two_buffers_by_turns(CPU)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), min_size=1, max_size=3)), max_size=6))
def test_what_is_packed_is_unpacked(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    values = [(torch.randn(shape) * 9).to(dtype) for dtype, shape in kinds]
    names = [str(place) for place in range(len(values))]
    flat = torch.zeros(packed_bytes(values), dtype=torch.uint8)
    rows = pack(flat, names, values)
    assert rows_bytes(rows) == flat.numel()
    back = unpack(flat, json.loads(json.dumps(rows)))
    assert [name for name, _ in back] == names
    for value, (_, found) in zip(values, back, strict=True):
        assert found.dtype == value.dtype and torch.equal(found, value)
        assert found.numel() == 0 or found.data_ptr() % found.element_size() == 0


def test_both_ends_are_one_memory_and_nothing_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    buffer = SharedBuffer(64, CPU)
    seen = open_buffer(json.loads(json.dumps(buffer.handle())))
    seen.fill_(7)
    assert buffer.flat.tolist() == [7] * 64
    buffer.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert seen.tolist() == [7] * 64, "who has it open keeps it"


def test_a_buffer_that_is_too_small_is_not_overrun() -> None:
    values = list(tensors().values())
    with pytest.raises(RuntimeError):
        pack(torch.zeros(packed_bytes(values) - 20, dtype=torch.uint8), list(tensors()), values)
