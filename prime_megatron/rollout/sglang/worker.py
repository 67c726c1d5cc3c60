"""What SGLang's scheduler processes do for us, one per tensor-parallel rank (SGLang's `custom_weight_loader`).

SGLang calls `run` between begin and end of a weight update. The "tensor's" name is a command in JSON and the tensor is
empty: weights never pass here, they lie in shared memory (CUDA IPC on a GPU) or come over a group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from prime_megatron.weights.broadcast import make_group, receive_tensors
from prime_megatron.weights.buffer import TensorRow, open_buffer, unpack, wait_for_reads
from prime_megatron.weights.segment import attach, bit_sums

LOADER = "prime_megatron.rollout.sglang.worker.run"
"""This module's loader by its name."""
_GROUP = "prime_group"


def run(model: nn.Module, named: Sequence[tuple[str, Tensor]]) -> None:
    """Carry out commands; an exception ends the scheduler, and with it the engine."""
    for name, _ in named:
        command = json.loads(name)
        _OPERATIONS[command.pop("op")](model, **command)


def _attach(model: nn.Module, path: str) -> None:
    attach(model, path)


def _bit_sums(model: nn.Module, path: str) -> None:
    Path(path).write_text(json.dumps(bit_sums(model.named_parameters())))


def _windows(model: nn.Module, path: str) -> None:
    """The attention window of every layer, in tokens with the token's own (SGLang counts those before it)."""
    layers = {int(m.layer_id): int(m.sliding_window_size) for m in model.modules() if hasattr(m, "sliding_window_size")}
    Path(path).write_text(json.dumps([None if layers[at] == -1 else layers[at] + 1 for at in sorted(layers)]))


def _load_bucket(model: Any, handle: Mapping[str, Any], rows: Sequence[TensorRow]) -> None:
    flat = open_buffer(handle)
    model.load_weights(unpack(flat, rows))
    wait_for_reads(flat)


def _join(model: nn.Module, address: str, port: int, name: str, rank: int, world_size: int) -> None:
    # The model is what this process keeps between two commands.
    setattr(model, _GROUP, make_group(address, port, name, rank=rank, world_size=world_size))


def _receive(model: Any, rows: Sequence[TensorRow]) -> None:
    group: dist.ProcessGroup = getattr(model, _GROUP)
    device = next(model.parameters()).device
    model.load_weights(receive_tensors(group, rows, device))


def _skip_foreign_experts(model: nn.Module) -> None:
    from prime_megatron.rollout.sglang.experts import skip_foreign_experts  # the driver reads this module's names only

    skip_foreign_experts()


_OPERATIONS = {
    "attach": _attach,
    "bit_sums": _bit_sums,
    "join": _join,
    "load_bucket": _load_bucket,
    "noop": lambda model: None,
    "receive": _receive,
    "skip_foreign_experts": _skip_foreign_experts,
    "windows": _windows,
}
