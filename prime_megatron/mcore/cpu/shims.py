"""Lets megatron-core run where there is no CUDA device (measured on 0.16.1); does nothing where there is one.

Megatron names the CUDA device in many places. Instead of patching torch for the whole process, the name
``torch`` inside megatron's own modules is replaced by a view of torch whose ``cuda`` is the CPU. Two things
cannot be reached that way, and are patched where they are: the ``Tensor.cuda`` method (here it could only
fail) and tensor type names such as "torch.cuda.FloatTensor" written into the optimizers' code.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "full",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
)
_MODULES = (
    "megatron.core.dist_checkpointing",
    "megatron.core.dist_checkpointing.serialization",
    "megatron.core.dist_checkpointing.strategies.fully_parallel",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel",
    "megatron.core.tensor_parallel.random",
    "megatron.core.transformer.moe.moe_layer",
    "megatron.core.transformer.moe.router",
    "megatron.core.transformer.moe.token_dispatcher",
)


class _Nothing:
    """Stands in for a CUDA stream or event: the CPU runs in order, so there is nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *args: object) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def wait_stream(self, *args: Any) -> None: ...
    def wait_event(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self, *args: Any) -> _Nothing:
        return self


_STREAM = _Nothing()


class _View(types.ModuleType):
    """A module seen through some replaced names."""

    def __init__(self, real: types.ModuleType, replaced: dict[str, Any]) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        if "device" in kwargs and kwargs["device"] is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return call


def _cpu_view_of_torch(seed_names: bool) -> _View:
    """torch with the CPU as its CUDA device. ``seed_names``: also hide the CPU's generator from
    megatron's random.py, which saves CPU and CUDA states separately and warns when the CPU's moves; here
    they are one generator."""
    random = _View(torch.cuda.random, {"get_rng_state": lambda device=None: torch.get_rng_state()})
    cuda = _View(
        torch.cuda,
        {
            "current_device": lambda: _CPU,
            "synchronize": lambda device=None: None,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
            "manual_seed": torch.manual_seed,
            "random": random,
            "Stream": _Nothing,
            "Event": _Nothing,
            "stream": lambda stream: _STREAM,
            "current_stream": lambda device=None: _STREAM,
            "empty_cache": lambda: None,
        },
    )
    replaced: dict[str, Any] = {"cuda": cuda}
    replaced.update({name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})
    if seed_names:
        constant = torch.zeros(1, dtype=torch.uint8)
        replaced.update({"get_rng_state": lambda: constant, "set_rng_state": lambda state: None})
    return _View(torch, replaced)


def _rename_tensor_types(function: types.FunctionType) -> None:
    """Rewrites "torch.cuda.XTensor" to "torch.XTensor" in the constants of a function."""

    def rename(constant: Any) -> Any:
        if isinstance(constant, str):
            return constant.replace("torch.cuda.", "torch.") if constant.endswith("Tensor") else constant
        if isinstance(constant, tuple):
            return tuple(rename(item) for item in constant)
        return constant

    code = function.__code__
    function.__code__ = code.replace(co_consts=tuple(rename(constant) for constant in code.co_consts))


def _uncompile(owner: Any) -> None:
    """Replaces functions that torch.compile has wrapped by the functions themselves: the first compiled
    step costs tens of seconds on a CPU."""
    for name, value in list(vars(owner).items()):
        original = getattr(value, "_torchdynamo_orig_callable", None)
        if original is not None:
            setattr(owner, name, original)


def _patch_random() -> None:
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    random.torch = _cpu_view_of_torch(seed_names=True)
    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state


def _patch_optimizers() -> None:
    """Every function of the optimizers that compares type names, and only those that name a CUDA type change."""
    for module_name in ("distrib_optimizer", "optimizer", "clip_grads"):
        module = importlib.import_module(f"megatron.core.optimizer.{module_name}")
        owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        for owner in owners:
            for value in vars(owner).values():
                function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                    _rename_tensor_types(function)


def _to_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """moe_utils.maybe_move_tensor_to_cpu for tensors that are already there: callers need the numpy form."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def apply() -> bool:
    """Patches megatron-core for a machine without CUDA; safe to call twice. Returns whether it is patched."""
    if torch.cuda.is_available():
        return False
    for name in _MODULES:
        importlib.import_module(name)
    random = sys.modules["megatron.core.tensor_parallel.random"]
    if isinstance(random.__dict__["torch"], _View):
        return True
    view = _cpu_view_of_torch(seed_names=False)
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and module is not None:
            if getattr(module, "torch", None) is torch:
                module.torch = view  # type: ignore[attr-defined]
            _uncompile(module)
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    _uncompile(value)
    _patch_random()
    _patch_optimizers()
    for name in ("moe_utils", "token_dispatcher"):
        module = sys.modules[f"megatron.core.transformer.moe.{name}"]
        module.maybe_move_tensor_to_cpu = _to_numpy  # type: ignore[attr-defined]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    return True
