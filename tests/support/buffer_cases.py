"""A shared buffer opened by another process, the same on any device; see test_rollout_shared_buffer.py."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from prime_megatron.weights.buffer import (
    SharedBuffer,
    TensorRow,
    open_buffer,
    pack,
    packed_bytes,
    unpack,
    wait_for_reads,
)

TIMEOUT_S = 120.0


def tensors() -> dict[str, torch.Tensor]:
    """Odd sizes, so that alignment matters; one that is not contiguous; one empty."""
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.randn(7),
        "c": torch.randn(4, 6).T,
        "d": torch.arange(3, dtype=torch.int64),
        "e": torch.empty(0, 4),
    }


def reader(pipe: Connection) -> None:
    """Opens what it is told of, answers with a copy on the CPU; the buffer is free again with the answer."""
    while True:
        handle, rows = pipe.recv()
        flat = open_buffer(handle)
        copies = [(name, tensor.cpu().clone().view(torch.uint8).tolist()) for name, tensor in unpack(flat, rows)]
        wait_for_reads(flat)
        del flat
        pipe.send(copies)


def check_two_buffers_by_turns(device: torch.device, rounds: int = 4) -> None:
    """What the other process reads is what was packed last, however often a buffer is used again."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=reader, args=(theirs,), daemon=True)
    process.start()
    try:
        named = {name: tensor.to(device) for name, tensor in tensors().items()}
        size = packed_bytes(list(named.values()))
        buffers = [SharedBuffer(size + 100, device) for _ in range(2)]
        for turn in range(rounds):
            values = [tensor + turn for tensor in named.values()]
            rows: list[TensorRow] = pack(buffers[turn % 2].flat, list(named), values)
            ours.send((buffers[turn % 2].handle(), rows))
            assert ours.poll(TIMEOUT_S)
            got: list[tuple[str, Any]] = ours.recv()
            for (name, held), value in zip(got, values, strict=True):
                expected = value.cpu().contiguous()
                assert held == expected.view(torch.uint8).tolist(), name
        for buffer in buffers:
            buffer.close()
            buffer.close()
    finally:
        process.kill()
        process.join()
