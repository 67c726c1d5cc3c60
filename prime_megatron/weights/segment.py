"""An engine's parameters in shared memory, so that the trainer's ranks write them in place.

A segment holds one tensor-parallel rank's parameters: a header (its length in 8 bytes, then JSON: name -> [offset,
dtype, shape]) and the tensors behind it. The trainer makes the file (empty), the engine process lays it out and moves
its parameters there; every process of the node that knows the path can map it. A restarted engine finds the segment
laid out, and with it the current weights: nothing has to be sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

_ALIGN_BYTES = 64
_LENGTH_BYTES = 8
_DATA_ALIGN_BYTES = 4096
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Table = dict[str, tuple[int, str, list[int]]]


def attach(model: nn.Module, path: str) -> None:
    """Move a model's parameters (on a CPU) into the segment at ``path``.

    An empty segment is laid out and filled with zeros (rows that only pad the vocabulary stay 0); a segment that is
    laid out keeps its content.
    Raises:
        RuntimeError: a parameter that is packed or not contiguous, or a segment of another model; the name is told.
    """
    params = dict(model.named_parameters())
    table = _layout(params.items())
    header = json.dumps(table).encode()
    start = _data_start(len(header))
    size = start + _end(table)
    with open(path, "r+b") as file:
        if file.seek(0, 2) == 0:
            file.truncate(size)
            file.seek(0)
            file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
    if _read_table(path)[0] != json.loads(header):
        raise RuntimeError(f"{path}: holds the weights of another model")
    tensors = open_segment(path)
    for name, param in params.items():
        param.data = tensors[name]


def open_segment(path: str) -> dict[str, Tensor]:
    """The tensors of a laid-out segment, by the engine's parameter names; writes are seen by every process."""
    table, start = _read_table(path)
    size = start + _end(table)
    flat = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    tensors = {}
    for name, (offset, dtype, shape) in table.items():
        kind = getattr(torch, dtype)
        count = torch.Size(shape).numel()
        piece = flat[start + offset : start + offset + count * kind.itemsize]
        tensors[name] = piece.view(kind).view(shape)
    return tensors


def bit_sums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Per tensor the sum of its raw bits as integers, modulo 2**64 (signed): the order of elements does not matter, so
    the sums of a tensor's parts add up to its own."""
    return {name: int(bit_sum(tensor)) for name, tensor in tensors}


def bit_sum(tensor: Tensor) -> Tensor:
    """One tensor's, as an int64 scalar on its device."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def _layout(params: Iterable[tuple[str, Tensor]]) -> Table:
    table: Table = {}
    offset = 0
    for name, param in params:
        if param.device.type != "cpu" or param.numel() == 0 or not param.is_contiguous():
            raise RuntimeError(f"{name}: the engine keeps it packed, strided or on a device; it cannot be shared")
        table[name] = (offset, str(param.dtype).removeprefix("torch."), list(param.shape))
        offset += -(-param.numel() * param.element_size() // _ALIGN_BYTES) * _ALIGN_BYTES
    return table


def _read_table(path: str) -> tuple[dict[str, list], int]:
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        return json.loads(file.read(length)), _data_start(length)


def _data_start(header_bytes: int) -> int:
    return -(-(_LENGTH_BYTES + header_bytes) // _DATA_ALIGN_BYTES) * _DATA_ALIGN_BYTES


def _end(table: dict) -> int:
    return max(
        offset + torch.Size(shape).numel() * getattr(torch, dtype).itemsize for offset, dtype, shape in table.values()
    )
