"""The CPU shims: inert with CUDA, and what they give without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks


def _megatron_globals() -> dict[str, dict[str, int]]:
    """Identity of everything the shims may touch."""
    import sys

    found = {
        name: {key: id(value) for key, value in vars(module).items()}
        for name, module in sys.modules.items()
        if name.startswith("megatron.core") and module is not None
    }
    found["Tensor"] = {"cuda": id(torch.Tensor.cuda), "type": id(torch.Tensor.type)}
    return found


def _inert() -> None:
    import importlib

    from prime_megatron.mcore.cpu import shims

    for name in shims._MODULES:
        importlib.import_module(name)
    before = _megatron_globals()
    available = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    try:
        assert not shims.apply()
        assert _megatron_globals() == before
    finally:
        torch.cuda.is_available = available
    assert shims.apply()
    assert _megatron_globals() != before
    again = _megatron_globals()
    assert shims.apply()
    assert _megatron_globals() == again


def test_inert_with_cuda() -> None:
    run_ranks(_inert, 1)


def _contained() -> None:
    """torch itself stays as it is, but for the one method that could only fail."""
    names = ("current_device", "synchronize", "manual_seed", "Stream", "get_rng_state")
    before = [getattr(torch.cuda, name) for name in names] + [torch.zeros, torch.tensor, torch.get_rng_state]
    from prime_megatron.mcore.cpu import shims

    shims.apply()
    after = [getattr(torch.cuda, name) for name in names] + [torch.zeros, torch.tensor, torch.get_rng_state]
    assert all(one is two for one, two in zip(before, after, strict=True))
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random as megatron_random

    assert schedules.torch.zeros([2], device="cuda", pin_memory=True).device.type == "cpu"
    assert schedules.torch.tensor([1.0], device=schedules.torch.cuda.current_device()).device.type == "cpu"
    assert schedules.torch.zeros([2], dtype=torch.int).dtype is torch.int
    assert schedules.torch.Tensor is torch.Tensor
    schedules.torch.cuda.synchronize()
    assert torch.ones(2).cuda().device.type == "cpu"
    assert megatron_random.torch.cuda.get_rng_state().equal(torch.get_rng_state())


def test_torch_itself_is_left_alone() -> None:
    run_ranks(_contained, 1)


def _fork() -> dict[str, Any]:
    from prime_megatron.config.model import ParallelConfig
    from prime_megatron.mcore.initialize import start_megatron

    start_megatron(ParallelConfig(tensor=2), seed=3, backend="gloo", timeout_s=60)
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    outside = torch.get_rng_state()
    with get_cuda_rng_tracker().fork():
        first = torch.rand(4)
    assert torch.get_rng_state().equal(outside), "the fork must not move the state outside"
    with get_cuda_rng_tracker().fork():
        second = torch.rand(4)
    return {"first": first, "second": second, "outside": torch.rand(4)}


def test_random_states_fork_per_tensor_rank() -> None:
    one, two = run_ranks(_fork, 2)
    assert not torch.equal(one["first"], two["first"])
    assert not torch.equal(one["first"], one["second"])
    assert torch.equal(one["outside"], two["outside"])


def _bf16_norm(folder: str, distributed: bool) -> list[float]:
    """Gradient norm and first weight after an update in bf16: float32 main weights and gradients."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    _, chunks = mcore_models.start({"distributed_optimizer": distributed}, folder, ddp=True, dtype="bfloat16")
    config = OptimizerConfig(
        optimizer="adam",
        lr=1e-2,
        weight_decay=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=distributed,
    )
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    generator = torch.Generator().manual_seed(0)
    for param in chunks[0].module.parameters():
        assert param.dtype is torch.bfloat16
        assert param.main_grad.dtype is torch.float32
        param.main_grad.copy_(torch.randn(param.shape, generator=generator))
    _, norm, _ = optimizer.step()
    main = [p for group in optimizer.param_groups for p in group["params"]]
    assert main
    assert all(p.dtype is torch.float32 for p in main)
    return [float(norm), float(sum(p.double().sum() for p in chunks[0].module.parameters()))]


def test_bf16_optimizers(tmp_path: Path) -> None:
    """The optimizers recognise parameters by type name: without the renaming they find none to update."""
    mcore_models.make_model(tmp_path / "m", "qwen2", num_hidden_layers=1)
    plain = run_ranks(_bf16_norm, 1, str(tmp_path / "m"), False)[0]
    sharded = run_ranks(_bf16_norm, 1, str(tmp_path / "m"), True)[0]
    assert plain[0] > 1.0
    torch.testing.assert_close(plain, sharded)
