"""A role in host memory and back: exact, without growth, and training goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

CYCLES = 20


def _role(folder: str, parallel: dict[str, Any], dtype: torch.dtype, *, frozen: bool = False) -> Any:
    from prime_megatron.config import OptimizerConfig, ParallelConfig
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.mcore.role import Role

    config = ParallelConfig(**parallel)
    topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
    optimizer = None if frozen else OptimizerConfig(lr=1e-3)
    return Role("policy", folder, topology, config, dtype=dtype, optimizer=optimizer)


def _minis(role: Any) -> tuple[Any, ...]:
    """One mini-batch of two sequences, the same on every rank."""
    from prime_megatron.types import MiniBatch, PackedSequences

    seqs = mcore_models.sequences([6, 10])
    tokens = torch.cat(seqs)
    mask = torch.tensor([False] * 2 + [True] * 4 + [False] * 3 + [True] * 7)
    packed = PackedSequences(
        tokens_S=tokens,
        cu_seqlens=torch.tensor([0, 6, 16], dtype=torch.int32),
        positions_S=torch.cat([torch.arange(6), torch.arange(10)]),
        response_mask_S=mask,
        source_S=torch.arange(16),
        sequence_index=torch.arange(2),
        max_seqlen=10,
    )
    return (MiniBatch((packed, packed), 11 * role.topology.sizes.data, 2 * role.topology.sizes.data),)


def _train(role: Any) -> float:
    from prime_megatron.step.losses import nll_loss

    result = role.train(_minis(role), nll_loss(), 16)
    assert result.updates[0].applied
    return result.updates[0].grad_norm


def _state(role: Any) -> list[torch.Tensor]:
    """Copies of everything that must come back: weights, gradients, Adam's moments, main weights."""
    memory = role.memory
    return [t.clone() for t in (*memory._parameters(), *memory._gradients(), *memory._optimizer_state())]


def _cycles(folder: str, parallel: dict[str, Any], dtype_name: str) -> dict[str, Any]:
    dtype = getattr(torch, dtype_name)
    role = _role(folder, parallel, dtype)
    _train(role)
    before = _state(role)
    resident = role.memory.device_bytes()
    pointers, host = set(), set()
    for _ in range(CYCLES):
        copied = role.offload()
        assert copied == sum(resident.values())
        assert role.offload() == 0, "a second offload moves nothing"
        assert sum(role.memory.device_bytes().values()) == 0
        assert all(t.untyped_storage().nbytes() == 0 for t in role.memory._parameters()), (
            "the memory was not given back"
        )
        pointers.add(tuple(buffer.data_ptr() for buffer in role.memory._buffers.values()))
        host.add(tuple(role.memory.host_bytes().values()))
        assert role.onload() == copied and role.onload() == 0
        assert role.memory.device_bytes() == resident
    assert len(pointers) == len(host) == 1, "the host buffers are made once"
    assert sum(role.memory.host_bytes().values()) <= sum(resident.values()) + 512 * len(before)
    after = _state(role)
    assert len(after) == len(before)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    norms = []
    for gradients in (True, False):
        role.offload(gradients=gradients)
        role.onload()
        norms.append(_train(role))
    weights = {f"{chunk}.{name}": value.clone() for (chunk, name), value in role.params().items()}
    mcore_models.restart()
    return {"resident": dict(resident), "norms": norms, "weights": weights}


def _straight(folder: str, parallel: dict[str, Any], dtype_name: str) -> dict[str, Any]:
    role = _role(folder, parallel, getattr(torch, dtype_name))
    _train(role)
    norms = [_train(role), _train(role)]
    weights = {f"{chunk}.{name}": value.clone() for (chunk, name), value in role.params().items()}
    mcore_models.restart()
    return {"norms": norms, "weights": weights}


@pytest.mark.parametrize(
    ("world", "parallel", "dtype"),
    [
        (1, {"distributed_optimizer": False}, "float32"),
        (1, {"distributed_optimizer": False}, "bfloat16"),
        (2, {}, "bfloat16"),
        (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}, "float32"),
        (2, {"pipeline": 2, "virtual_pipeline": 2}, "float32"),
    ],
)
def test_cycles_change_nothing(tmp_path: Path, world: int, parallel: dict[str, Any], dtype: str) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2_tied")
    folder = str(tmp_path / "model")
    moved = run_ranks(_cycles, world, folder, parallel, dtype)
    straight = run_ranks(_straight, world, folder, parallel, dtype)
    for one, two in zip(moved, straight, strict=True):
        assert one["norms"] == two["norms"]
        assert one["weights"].keys() == two["weights"].keys()
        for name, value in one["weights"].items():
            assert torch.equal(value, two["weights"][name]), name
        assert all(one["resident"][kind] > 0 for kind in ("parameters", "gradients", "optimizer"))


def _frozen(folder: str) -> None:
    role = _role(folder, {}, torch.float32, frozen=True)
    micro = _minis(role)[0].micro[:1]
    before = role.logprobs(micro, 16).logprobs_T
    resident = role.memory.device_bytes()
    assert resident["parameters"] > 0 and resident["gradients"] == resident["optimizer"] == 0
    role.offload()
    with pytest.raises(AssertionError, match="host memory"):
        role.logprobs(micro, 16)
    role.onload()
    assert torch.equal(role.logprobs(micro, 16).logprobs_T, before)


def test_a_frozen_role_scores_the_same(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    run_ranks(_frozen, 1, str(tmp_path / "model"))
