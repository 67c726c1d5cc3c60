"""An optimizer step whose state is in host memory: piece by piece over two places on the device.

Adam treats every parameter by itself, so the pieces give the bits of the whole. While a piece is computed the next one
arrives and the one before leaves; a third is not begun before the first is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MixedPrecisionOptimizer
from torch import Tensor

from prime_megatron.config.model import PIECE_BYTES
from prime_megatron.device import Mark
from prime_megatron.mcore.offload import OPTIMIZER, HostCopy
from prime_megatron.mcore.storages import drop, total

_GROUPS = {
    DistributedOptimizer: (
        ("model_float16_groups", "shard_fp32_from_float16_groups"),
        ("model_fp32_groups", "shard_fp32_groups"),
    ),
    Float16OptimizerWithFloat16Params: (("float16_groups", "fp32_from_float16_groups"),),
}
"""Megatron's lists of weights and, in the same order, of what the optimizer steps for them."""


def step_in_pieces(optimizer: Any, memory: HostCopy, limit: int = PIECE_BYTES) -> bool:
    """megatron's step_with_ready_grads for an optimizer whose state is away, and is away again afterwards.

    Args:
        optimizer: megatron's chained optimizer, its gradients ready and clipped.
        memory: of its role.
        limit: bytes of a piece.
    """
    applied = True
    for part in optimizer.chained_optimizers:
        applied &= _step(part, memory, limit)
    return applied


def _step(part: Any, memory: HostCopy, limit: int) -> bool:
    if part.is_stub_optimizer:
        return bool(part.step_with_ready_grads())
    pieces = memory.state.pieces(part, limit)
    counts = [group["step"] for group in part.optimizer.param_groups if "step" in group]
    applied = True
    arriving, leaving = _bring(pieces[0], memory), list[Mark]()
    for index, piece in enumerate(pieces):
        arrived = arriving
        if index + 1 < len(pieces):
            if index:
                leaving[index - 1].wait()
            arriving = _bring(pieces[index + 1], memory)
        arrived.before_compute()
        with _only(part, piece):
            _set_counts(part.optimizer.param_groups, counts)
            last = index + 1 == len(pieces)
            # The distributed optimizer's own also gathers the weights, a collective, once.
            kind = MixedPrecisionOptimizer if isinstance(part, DistributedOptimizer) and not last else type(part)
            applied &= bool(kind.step_with_ready_grads(part))
        blocks = memory.state.blocks(piece)  # the first step makes the moments
        leaving.append(memory.copy_out(blocks, OPTIMIZER))
        memory.stepped[1] += total(blocks)
        drop(blocks)
    return applied


def _bring(piece: Sequence[Tensor], memory: HostCopy) -> Mark:
    blocks = memory.state.blocks(piece)
    memory.stepped[0] += total(blocks)
    return memory.copy_in(blocks, OPTIMIZER)


def _set_counts(groups: Sequence[dict[str, Any]], counts: Sequence[Any]) -> None:
    """The fused Adams of apex and Transformer Engine count their steps by group, all or none of which have begun: every
    piece is the same step."""
    for index, group in enumerate(groups):
        if not group["params"]:
            continue
        if counts:
            group["step"] = counts[index]
        else:
            group.pop("step", None)


@contextmanager
def _only(part: Any, piece: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the optimizer knows these parameters alone."""
    chosen = {id(param) for param in piece}
    groups = part.optimizer.param_groups
    params = [group["params"] for group in groups]
    pairs = next((pairs for kind, pairs in _GROUPS.items() if isinstance(part, kind)), ())
    lists = {name: getattr(part, name) for pair in pairs for name in pair}
    for group, whole in zip(groups, params, strict=True):
        group["params"] = [param for param in whole if id(param) in chosen]
    for model_name, main_name in pairs:
        kept = [
            [(model, main) for model, main in zip(*both, strict=True) if id(main) in chosen]
            for both in zip(lists[model_name], lists[main_name], strict=True)
        ]
        setattr(part, model_name, [[model for model, _ in group] for group in kept])
        setattr(part, main_name, [[main for _, main in group] for group in kept])
    try:
        yield
    finally:
        for group, whole in zip(groups, params, strict=True):
            group["params"] = whole
        for name, whole in lists.items():
            setattr(part, name, whole)
