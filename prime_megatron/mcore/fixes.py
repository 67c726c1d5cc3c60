"""Fixes for megatron-core bugs that exist on every device, each gated by the versions that have it.

Every fix names the upstream lines (of 0.16.1), what goes wrong, and has a regression test that shows the bug without
the fix on the releases that have it, and its absence on the others (tests/distributed/test_mcore_upstream_fixes.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version

from prime_megatron.mcore.versions import installed


@dataclass(frozen=True)
class Fix:
    """One bug: versions from ``since`` and below ``fixed_in`` (none: no released version is known to be fixed)."""

    name: str
    since: str
    fixed_in: str | None
    patch: Callable[[], None]

    def needed(self, release: Version) -> bool:
        """Whether a release has the bug."""
        return release >= Version(self.since) and (self.fixed_in is None or release < Version(self.fixed_in))


def apply() -> tuple[str, ...]:
    """Applies the fixes that this megatron-core needs; safe to call twice. Returns their names."""
    needed = [fix for fix in FIXES if fix.needed(installed())]
    for fix in needed:
        fix.patch()
    return tuple(fix.name for fix in needed)


def _router_without_engine() -> None:
    """transformer/moe/moe_utils.py:1192: without Transformer Engine the import that would define
    te_general_gemm fails, and "if te_general_gemm is not None" is a NameError in every MoE router."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _wrap(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a method once; a second call finds the mark of the first."""
    original = getattr(owner, name)
    if hasattr(original, "prime_megatron_fix"):
        return
    replacement = functools.wraps(original)(wrap(original))
    replacement.prime_megatron_fix = True  # type: ignore[attr-defined]
    setattr(owner, name, replacement)


def _uses_torch_adam(optimizer: Any) -> bool:
    """torch's Adam keeps a step tensor per parameter; the fused ones of apex and TE keep it in the group."""
    return isinstance(optimizer, torch.optim.Adam)


def _fresh_state_dict() -> None:
    """optimizer/distrib_optimizer.py:630: state_dict() asserts that all parameters have one step count, and
    fails when there is no state yet, as before loading a checkpoint. Adam's state is made first, at step 0.
    A rank without parameters of its own (more ranks than buckets) reports step 0 as well."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def state_dict(self: Any) -> Any:
            if not _uses_torch_adam(self.optimizer):
                return original(self)
            _make_adam_state(self.optimizer)
            if self.optimizer.state:
                return original(self)
            inner = self.optimizer.state_dict()
            groups = [
                {**{key: value for key, value in group.items() if key != "params"}, "step": 0.0}
                for group in inner["param_groups"]
            ]
            made = {"optimizer": {"param_groups": groups}}
            return {**made, "grad_scaler": self.grad_scaler.state_dict()} if self.grad_scaler else made

        return state_dict

    _wrap(DistributedOptimizer, "state_dict", wrap)


def _make_adam_state(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment not in state:
                    state[moment] = torch.zeros_like(param.data)


def _missing_step() -> None:
    """optimizer/distrib_optimizer.py:939: loading copies every entry of Adam's state from the checkpoint, which
    rightly has no "step" (it travels with the groups): KeyError. The step that is there is kept. In float32 the
    main parameter is a view of the model's, and autograd refuses a copy into it: hence no_grad."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> Any:
            if "step" not in tensors and _uses_torch_adam(self.optimizer):
                group, order = self.model_param_group_index_map[model_param]
                state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
                if "step" in state:
                    tensors = {**tensors, "step": state["step"]}
            with torch.no_grad():
                return original(self, model_param, tensors)

        return set_states

    _wrap(DistributedOptimizer, "_set_main_param_and_optimizer_states", wrap)


def _shared_step() -> None:
    """optimizer/distrib_optimizer.py:821-825: after a load, one step tensor is shared by all parameters, each of
    which adds 1 to it in every update: the bias correction runs ahead and training goes silently wrong."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_state_dict(self: Any, state_dict: Any) -> Any:
            result = original(self, state_dict)
            if _uses_torch_adam(self.optimizer):
                for state in self.optimizer.state.values():
                    state["step"] = state["step"].clone()
            return result

        return load_state_dict

    _wrap(DistributedOptimizer, "load_state_dict", wrap)


def _buckets_with_padding() -> None:
    """optimizer/distrib_optimizer.py:1061-1115 and :1455-1510: get_parameter_state_dp_zero() drops the padding between
    the buckets of a buffer, and sharded_param_state_fully_reshardable() cuts its result at offsets that count it. With
    more than one bucket (tied embeddings under pipeline parallelism, overlap_grad_reduce) parameters and moments are
    **saved from the wrong place, silently**. The padding is put back before the cutting."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def sharded_param_state(self: Any, *args: Any, **kwargs: Any) -> Any:
            gather = self.get_parameter_state_dp_zero

            def gather_padded(**options: Any) -> Any:
                state = gather(**options)
                return None if state is None else _put_padding_back(self.buffers, state)

            self.get_parameter_state_dp_zero = gather_padded
            try:
                return original(self, *args, **kwargs)
            finally:
                del self.get_parameter_state_dp_zero

        return sharded_param_state

    _wrap(DistributedOptimizer, "sharded_param_state_fully_reshardable", wrap)


def _put_padding_back(buffers: Any, state: dict[Any, Any]) -> dict[Any, Any]:
    """The gathered tensors with every bucket at its offset in the buffer."""
    for index, buffer in enumerate(buffers):
        sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        if starts == [bucket.offset for bucket in buffer.buckets]:
            continue
        for tensors in state[index].values():
            for key, compact in tensors.items():
                if key == "numel_unpadded":
                    continue
                padded = compact.new_zeros(buffer.numel)
                for bucket, start, size in zip(buffer.buckets, starts, sizes, strict=True):
                    padded[bucket.offset : bucket.offset + size] = compact[start : start + size]
                tensors[key] = padded
    return state


FIXES = (
    Fix("moe router without Transformer Engine", "0.16", "0.17", _router_without_engine),
    Fix("state_dict of a fresh distributed optimizer", "0.16", None, _fresh_state_dict),
    Fix("step missing when optimizer state is loaded", "0.16", None, _missing_step),
    Fix("one step tensor shared by all parameters after a load", "0.16", None, _shared_step),
    Fix("parameters cut at the wrong offsets when buckets are padded", "0.16", None, _buckets_with_padding),
)
