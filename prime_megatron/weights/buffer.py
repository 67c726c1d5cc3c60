"""Memory that another process of this node opens in place: a nameless file on a CPU, CUDA IPC on a GPU.

What is known of a buffer elsewhere is its handle, JSON values. Only handles differ between the two kinds of device.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TensorRow = tuple[str, str, Sequence[int]]
"""A tensor's name, dtype and shape."""
_ALIGN_BYTES = 16


class SharedBuffer:
    """``num_bytes`` of shared memory, as ``flat``: uint8 [num_bytes].

    The owner may write it again as soon as those who opened it have said that they are done: they wait for their
    device before they say so.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._file: int | None = None
        if device.type == "cpu":
            self._file = os.memfd_create("prime-bucket", os.MFD_CLOEXEC)
            os.ftruncate(self._file, num_bytes)
            self.flat = torch.from_file(self._path, shared=True, size=num_bytes, dtype=torch.uint8)
        else:
            self.flat = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def handle(self) -> dict[str, Any]:
        """For one process; CUDA counts who has opened it, so each gets a handle of its own."""
        num_bytes = self.flat.numel()
        if self._file is not None:
            return {"path": self._path, "num_bytes": num_bytes}
        torch.cuda.synchronize(self.flat.device)  # what was written is there for whoever opens it
        _, *parts = self.flat.untyped_storage()._share_cuda_()
        packed = [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in parts]
        kinds = [isinstance(part, bytes) for part in parts]
        return {"uuid": _uuid(self.flat.device.index), "parts": packed, "bytes": kinds, "num_bytes": num_bytes}

    def close(self) -> None:
        """Free it here; it lives on while others have it open."""
        on_gpu = self.flat.is_cuda
        self.flat = torch.empty(0, dtype=torch.uint8)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if on_gpu:
            torch.cuda.ipc_collect()

    @property
    def _path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._file}"


def open_buffer(handle: Mapping[str, Any]) -> Tensor:
    """The buffer behind a handle, uint8 [num_bytes], on its own device."""
    if "path" in handle:
        return torch.from_file(handle["path"], shared=True, size=handle["num_bytes"], dtype=torch.uint8)
    index = next(index for index in range(torch.cuda.device_count()) if _uuid(index) == handle["uuid"])
    parts = [
        base64.b64decode(part) if packed else part
        for part, packed in zip(handle["parts"], handle["bytes"], strict=True)
    ]
    with torch.cuda.device(index):
        storage = torch.UntypedStorage._new_shared_cuda(index, *parts)
        return torch.empty(0, dtype=torch.uint8, device=f"cuda:{index}").set_(storage)[: handle["num_bytes"]]


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """What ``pack`` needs for these tensors."""
    return sum(_room(tensor.numel() * tensor.element_size()) for tensor in tensors)


@torch.no_grad()
def pack(flat: Tensor, names: Sequence[str], tensors: Sequence[Tensor]) -> list[TensorRow]:
    """Copy tensors into a buffer one behind the other, each aligned; returns what ``unpack`` needs to find them."""
    offset = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        flat[offset : offset + num_bytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        offset += _room(num_bytes)
    return [
        (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        for name, tensor in zip(names, tensors, strict=True)
    ]


def unpack(flat: Tensor, rows: Sequence[TensorRow]) -> list[tuple[str, Tensor]]:
    """Views of the tensors in a packed buffer, with their names."""
    named = []
    offset = 0
    for name, dtype, shape in rows:
        kind = getattr(torch, dtype)
        num_bytes = torch.Size(shape).numel() * kind.itemsize
        named.append((name, flat[offset : offset + num_bytes].view(kind).view(tuple(shape))))
        offset += _room(num_bytes)
    return named


def rows_bytes(rows: Sequence[TensorRow]) -> int:
    """Length of the packed tensors."""
    return sum(_room(torch.Size(shape).numel() * getattr(torch, dtype).itemsize) for _, dtype, shape in rows)


def wait_for_reads(flat: Tensor) -> None:
    """Return when this process is done with a buffer: on its own device, and on the buffer's, which is another one for
    all but the first rank of an engine."""
    if flat.is_cuda:
        torch.cuda.synchronize(flat.device)
        torch.cuda.synchronize()


def _room(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
