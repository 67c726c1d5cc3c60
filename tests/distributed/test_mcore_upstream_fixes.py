"""Each upstream bug is shown first on the releases that have it (so that a test fails once it is fixed upstream), then
its fix; on the others upstream alone is right."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from prime_megatron.mcore.versions import installed
from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

ROUTER = "moe router without Transformer Engine"
EVERYWHERE = [
    "state_dict of a fresh distributed optimizer",
    "step missing when optimizer state is loaded",
    "one step tensor shared by all parameters after a load",
    "parameters cut at the wrong offsets when buckets are padded",
]


def _router() -> None:
    from prime_megatron.mcore import fixes
    from prime_megatron.mcore.cpu import shims

    shims.apply()
    from megatron.core.transformer.moe.moe_utils import router_gating_linear

    x, weight = torch.randn(5, 8), torch.randn(3, 8, requires_grad=True)
    broken = installed() < Version("0.17")
    with pytest.raises(NameError) if broken else contextlib.nullcontext():
        torch.testing.assert_close(router_gating_linear(x, weight, None, torch.float32), x @ weight.T)
    assert fixes.apply() == (*([ROUTER] if broken else []), *EVERYWHERE)
    out = router_gating_linear(x, weight, None, torch.float32)
    torch.testing.assert_close(out, x @ weight.T)


def test_router_without_engine() -> None:
    run_ranks(_router, 1)


def _without_fixes() -> list[Any]:
    """Undoes what start_megatron applied; returns how to redo it."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    fixed = []
    for name in ("state_dict", "load_state_dict", "_set_main_param_and_optimizer_states"):
        method = getattr(DistributedOptimizer, name)
        fixed.append((name, method))
        setattr(DistributedOptimizer, name, method.__wrapped__)
    return fixed


def _with_fixes(fixed: list[Any]) -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    for name, method in fixed:
        setattr(DistributedOptimizer, name, method)


def _optimizer(folder: str) -> Any:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    _, chunks = mcore_models.start({}, folder, ddp=True)
    config = OptimizerConfig(optimizer="adam", lr=1e-2, use_distributed_optimizer=True, params_dtype=torch.float32)
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False).chained_optimizers[0]
    return chunks, optimizer


def _steps(optimizer: Any) -> list[float]:
    return sorted({float(state["step"]) for state in optimizer.optimizer.state.values()})


def _update(chunks: Any, optimizer: Any, num_updates: int) -> None:
    for update in range(num_updates):
        generator = torch.Generator().manual_seed(update)
        for param in chunks[0].module.parameters():
            param.main_grad.copy_(torch.randn(param.shape, generator=generator))
        optimizer.step()


def _fresh_state(folder: str) -> None:
    _, optimizer = _optimizer(folder)
    fixed = _without_fixes()
    with pytest.raises(AssertionError):
        optimizer.state_dict()
    _with_fixes(fixed)
    groups = optimizer.state_dict()["optimizer"]["param_groups"]
    assert [group["step"] for group in groups] == [0.0] * len(groups)
    assert _steps(optimizer) == [0.0]


def _missing_step(folder: str) -> None:
    chunks, optimizer = _optimizer(folder)
    _update(chunks, optimizer, 2)
    param = next(iter(chunks[0].module.parameters()))
    current = optimizer._get_main_param_and_optimizer_states(param)
    loaded = {key: torch.full_like(current[key], 0.5) for key in ("param", "exp_avg", "exp_avg_sq")}
    fixed = _without_fixes()
    with torch.no_grad(), pytest.raises(KeyError, match="step"):
        optimizer._set_main_param_and_optimizer_states(param, loaded)
    _with_fixes(fixed)
    optimizer._set_main_param_and_optimizer_states(param, loaded)
    now = optimizer._get_main_param_and_optimizer_states(param)
    assert all(torch.equal(now[key], value) for key, value in loaded.items())
    assert _steps(optimizer) == [2.0]


def _shared_step(folder: str) -> None:
    chunks, optimizer = _optimizer(folder)
    _update(chunks, optimizer, 3)
    saved = optimizer.state_dict()
    fixed = _without_fixes()
    optimizer.load_state_dict(saved)
    _update(chunks, optimizer, 1)
    assert _steps(optimizer) != [4.0], "upstream's bug: one tensor counts once for every parameter"
    _with_fixes(fixed)
    optimizer.load_state_dict(saved)
    assert _steps(optimizer) == [3.0]
    _update(chunks, optimizer, 1)
    assert _steps(optimizer) == [4.0]


def _padded_buckets(folder: str) -> None:
    """What a save takes from buffers of several padded buckets, parameter by parameter, against Adam's own state."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    options = DistributedDataParallelConfig(
        use_distributed_optimizer=True, overlap_grad_reduce=True, bucket_size=2000, average_in_collective=False
    )
    topology, chunks = mcore_models.start({}, folder, ddp=options)
    config = OptimizerConfig(optimizer="adam", lr=1e-2, use_distributed_optimizer=True, params_dtype=torch.float32)
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False).chained_optimizers[0]
    _update(chunks, optimizer, 2)
    (buffer,) = optimizer.buffers
    ends = [bucket.offset + bucket.numel_unpadded for bucket in buffer.buckets]
    assert [bucket.offset for bucket in buffer.buckets][1:] != ends[:-1], "nothing is padded: the test shows nothing"

    fixed = DistributedOptimizer.sharded_param_state_fully_reshardable
    assert _wrongly_saved(chunks[0], optimizer, topology, fixed) == []
    wrong = _wrongly_saved(chunks[0], optimizer, topology, fixed.__wrapped__)
    assert wrong, "upstream's bug: the offsets count padding that is not there"


def _wrongly_saved(chunk: Any, optimizer: Any, topology: Any, method: Any) -> list[tuple[str, str]]:
    """Parameters and the parts of their state that a method would write from the wrong place."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "dp_cp_group": topology.data_context,
    }
    sharded = chunk.module.sharded_state_dict(metadata=metadata)
    saved = {entry.key: entry.data for entry in nested_values(method(optimizer, {"model": sharded}, False, metadata))}
    keys = {id(entry.data): entry.key for entry in nested_values(sharded) if isinstance(entry.data, torch.Tensor)}
    wrong = []
    for name, param in chunk.module.named_parameters():
        for part, value in optimizer._get_main_param_and_optimizer_states(param).items():
            if part != "step":
                found = saved[f"optimizer.state.{part}.{keys[id(param)]}"]
                wrong += [] if torch.equal(found.flatten(), value.flatten()) else [(name, part)]
    return wrong


@pytest.mark.parametrize("case", [_fresh_state, _missing_step, _shared_step, _padded_buckets])
def test_distributed_optimizer(case: Any, tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "m", "qwen2", num_hidden_layers=1, hidden_size=36, head_dim=8)
    run_ranks(case, 1, str(tmp_path / "m"))
