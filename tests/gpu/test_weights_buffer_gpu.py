"""Buckets by CUDA IPC: the CPU's test on the other kind of memory."""

from __future__ import annotations

import pytest
import torch

from tests.support.buffer_cases import check_two_buffers_by_turns

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_process_reads_what_was_packed_last() -> None:
    before = torch.cuda.memory_allocated()  # of earlier tests in this process: cuBLAS keeps a workspace
    check_two_buffers_by_turns(torch.device("cuda", torch.cuda.current_device()), rounds=20)
    assert torch.cuda.memory_allocated() < before + 2**20
