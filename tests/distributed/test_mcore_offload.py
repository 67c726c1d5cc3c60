"""A role in host memory and back: exact, without growth, and training goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron import device
from prime_megatron.mcore import host_memory, piecewise
from prime_megatron.mcore.offload import GRADIENTS, KINDS, OPTIMIZER, PARAMETERS, RoleAway
from prime_megatron.mcore.storages import bytes_of, gradients, parameters
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
    return Role("reference" if frozen else "policy", folder, topology, config, dtype=dtype, optimizer=optimizer)


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
    """Copies of everything that must come back: weights, Adam's moments, main weights."""
    blocks = [block for kind in ("parameters", "optimizer") for block in role.memory._blocks(kind)]
    return [bytes_of(block.storage).clone() for block in blocks]


def _reads(role: Any) -> list[Callable[[], Any]]:
    """Every method of a role that reads what may be away."""
    from prime_megatron.mcore.checkpoint import RoleShards, load_role
    from prime_megatron.step.losses import nll_loss

    minis = _minis(role)
    micro = minis[0].micro
    return [
        lambda: role.logprobs(micro, 16),
        lambda: role.target_logits(micro, 16, temperature=1.0),
        lambda: role.train(minis, nll_loss(), 16),
        lambda: role.learn(minis, lambda mini: None),
        lambda: role.forward(micro, None, 16, num_rows=1),
        lambda: role.export(Path("nowhere")),
        role.params,
        role.head,
        lambda: RoleShards(role),
        lambda: load_role(role, Path("nowhere")),
    ]


def _cycles(folder: str, parallel: dict[str, Any], dtype_name: str) -> dict[str, Any]:
    """Two updates with the state on the device, moves, two updates by pieces of a few parameters."""
    piecewise.step_in_pieces.__defaults__ = (40_000,)
    role = _role(folder, parallel, getattr(torch, dtype_name))
    memory = role.memory
    memory.reserve()
    norms = [_train(role)]
    before, resident = _state(role), memory.device_bytes()
    assert all(resident[kind] > 0 for kind in KINDS)
    assert memory.send(KINDS) == resident["parameters"] + resident["optimizer"], "gradients are never copied"
    assert sum(memory.device_bytes().values()) == memory.send(KINDS) == 0
    tensors = [*parameters(role.chunks), *gradients(role.chunks)]
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in tensors)
    assert all(block.storage.nbytes() == 0 for block in memory.state.all())
    for read in _reads(role):
        with pytest.raises(RoleAway, match=r"^policy: .*parameters.* not on the device; bring that back first$"):
            read()
    held = memory.host_bytes()
    for _ in range(CYCLES):
        assert memory.bring(KINDS) == resident["parameters"] + resident["optimizer"]
        assert memory.device_bytes() == resident
        assert memory.send(KINDS) == 0, "what has not changed is dropped"
    memory.bring(KINDS)
    after = _state(role)
    assert len(after) == len(before) and all(map(torch.equal, before, after))
    norms.append(_train(role))
    memory.send({OPTIMIZER, GRADIENTS})
    with pytest.raises(RoleAway, match=r"gradients not on"):
        _train(role)
    for _ in range(2):
        memory.bring({GRADIENTS})
        norms.append(_train(role))
        assert memory.device_bytes()["optimizer"] == 0
        arrived, left = memory.take_stepped()
        assert arrived == left == resident["optimizer"]
        memory.send({GRADIENTS})
    memory.bring({OPTIMIZER})
    assert memory.host_bytes() == held, "host memory is taken once"
    final = {str(index): block for index, block in enumerate(_state(role))}
    mcore_models.restart()
    return {"norms": norms, "state": final}


def _straight(folder: str, parallel: dict[str, Any], dtype_name: str) -> dict[str, Any]:
    role = _role(folder, parallel, getattr(torch, dtype_name))
    norms = [_train(role) for _ in range(4)]
    final = {str(index): block for index, block in enumerate(_state(role))}
    mcore_models.restart()
    return {"norms": norms, "state": final}


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
        assert one["state"].keys() == two["state"].keys()
        for name, value in one["state"].items():
            assert torch.equal(value, two["state"][name]), name


def _first_update_by_pieces(folder: str) -> dict[str, Any]:
    """Moments are made piece by piece, in host memory that was taken for them before."""
    piecewise.step_in_pieces.__defaults__ = (40_000,)
    role = _role(folder, {}, torch.bfloat16)
    role.memory.send(KINDS)
    held = role.memory.host_bytes()
    role.memory.bring({PARAMETERS, GRADIENTS})
    norms = [_train(role), _train(role)]
    assert role.memory.host_bytes() == held
    role.memory.bring({OPTIMIZER})
    return {"norms": norms, "state": {str(index): block for index, block in enumerate(_state(role))}}


def _two_updates(folder: str) -> dict[str, Any]:
    role = _role(folder, {}, torch.bfloat16)
    norms = [_train(role), _train(role)]
    return {"norms": norms, "state": {str(index): block for index, block in enumerate(_state(role))}}


def test_moments_appear_in_a_step_by_pieces(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    one = run_ranks(_first_update_by_pieces, 1, str(tmp_path / "model"))[0]
    two = run_ranks(_two_updates, 1, str(tmp_path / "model"))[0]
    assert one["norms"] == two["norms"] and one["state"].keys() == two["state"].keys()
    assert all(torch.equal(value, two["state"][name]) for name, value in one["state"].items())


def _resident(folder: str) -> list[float]:
    """Host memory as told, and as the kernel counts it, after the first move and after more; of 50 MB of state."""
    role = _role(folder, {}, torch.bfloat16)
    before = device.host_memory_bytes()
    role.memory.reserve()
    grown = [device.host_memory_bytes() - before]
    _train(role)
    for _ in range(CYCLES):
        role.memory.send(KINDS)
        role.memory.bring(KINDS)
        role.memory.changed(PARAMETERS, OPTIMIZER)
        grown.append(device.host_memory_bytes())
    return [sum(role.memory.host_bytes().values()), grown[0], grown[-1] - grown[2]]


def test_host_memory_is_what_is_told(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2", hidden_size=256, intermediate_size=1024, vocab_size=4096)
    told, resident, growth = run_ranks(_resident, 1, str(tmp_path / "model"))[0]
    assert told > 4e7
    assert abs(resident / told - 1) < 0.05
    assert growth < 0.05 * told


def _frozen(folder: str) -> None:
    role = _role(folder, {}, torch.float32, frozen=True)
    micro = _minis(role)[0].micro[:1]
    before = role.logprobs(micro, 16).logprobs_T
    resident = role.memory.device_bytes()
    assert resident["parameters"] > 0 and resident["gradients"] == resident["optimizer"] == 0
    assert role.memory.send(KINDS) == resident["parameters"]
    with pytest.raises(RoleAway, match="reference: parameters not on"):
        role.logprobs(micro, 16)
    assert role.memory.bring({PARAMETERS}) == resident["parameters"]
    assert torch.equal(role.logprobs(micro, 16).logprobs_T, before)
    assert role.memory.send(KINDS) == 0, "a frozen role is copied once"


def test_a_frozen_role_scores_the_same(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    run_ranks(_frozen, 1, str(tmp_path / "model"))


def test_a_region_over_several_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes cross segments; progress is told; the last segment is as large as it must be; what is freed is gone."""
    monkeypatch.setattr(host_memory, "SEGMENT_BYTES", 2**20)
    said: list[str] = []
    region = host_memory.HostPool(said.append).take(10 * 2**20 + 5000, "policy (weights)")
    assert region.nbytes == 10 * 2**20 + 8192
    assert len(said) == 2 and said[-1].startswith("host memory for policy (weights): 0 of 0 GiB")
    source = torch.randint(0, 256, (3 * 2**20,), dtype=torch.uint8)
    region.write(2**20 - 77, source)
    target = torch.zeros_like(source)
    region.read(2**20 - 77, target)
    assert torch.equal(source, target)
    before = device.host_memory_bytes()
    region.free()
    assert before - device.host_memory_bytes() > 9 * 2**20
