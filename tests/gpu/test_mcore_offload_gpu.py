"""A role that leaves a GPU and comes back beside one that stays: pinned copies on streams of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import models as mcore_models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def _minis() -> tuple[Any, ...]:
    from prime_megatron.types import MiniBatch, PackedSequences

    packed = PackedSequences(
        tokens_S=torch.cat(mcore_models.sequences([6, 10])),
        cu_seqlens=torch.tensor([0, 6, 16], dtype=torch.int32),
        positions_S=torch.cat([torch.arange(6), torch.arange(10)]),
        response_mask_S=torch.tensor([False] * 2 + [True] * 4 + [False] * 3 + [True] * 7),
        source_S=torch.arange(16),
        sequence_index=torch.arange(2),
        max_seqlen=10,
    )
    here = {
        field.name: value.cuda()
        for field in dataclasses.fields(packed)
        if isinstance(value := getattr(packed, field.name), torch.Tensor)
    }
    return (MiniBatch((dataclasses.replace(packed, **here),), 11, 2),)


def test_moves_beside_the_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prime_megatron.config import OptimizerConfig, ParallelConfig
    from prime_megatron.mcore import host_memory, piecewise
    from prime_megatron.mcore.initialize import start_megatron, stop_megatron
    from prime_megatron.mcore.offload import GRADIENTS, KINDS, PARAMETERS
    from prime_megatron.mcore.role import Role
    from prime_megatron.step.losses import nll_loss

    monkeypatch.setattr(piecewise.step_in_pieces, "__defaults__", (2**22,))
    monkeypatch.setattr(host_memory, "SEGMENT_BYTES", 2**23)
    mcore_models.make_model(tmp_path / "m", "qwen2", hidden_size=256, intermediate_size=1024, vocab_size=4096)
    topology = start_megatron(ParallelConfig(), seed=1, backend="nccl", timeout_s=60)
    pool = host_memory.HostPool()
    try:
        stays, moves = (
            Role(name, str(tmp_path / "m"), topology, ParallelConfig(), dtype=torch.bfloat16,
                 optimizer=OptimizerConfig(lr=1e-3), pool=pool)
            for name in ("stays", "moves")
        )  # fmt: skip
        moves.memory.reserve()
        assert all(segment.is_pinned() for region in pool._regions for segment in region._segments)
        for _ in range(5):
            stays.train(_minis(), nll_loss(), 16)
            moves.memory.send(KINDS)
            before = torch.cuda.memory_allocated()
            moves.memory.bring({PARAMETERS, GRADIENTS})
            held = sum(moves.memory.device_bytes().values())
            assert held <= torch.cuda.memory_allocated() - before <= 1.1 * held + 2**20
            moves.train(_minis(), nll_loss(), 16)
        for name, weight in stays.params().items():
            torch.testing.assert_close(moves.params()[name], weight, rtol=0, atol=1e-3)
    finally:
        pool.close()
        stop_megatron()
