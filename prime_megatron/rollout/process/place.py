"""Where an engine's process runs: its devices or cores."""

from __future__ import annotations

import os

import torch

from prime_megatron import device
from prime_megatron.errors import InputError


def engine_environment(tensor: int, leader: int) -> dict[str, str]:
    """Variables of the engine's processes: which devices or cores of this node are the replica's."""
    if device.on_gpu():
        first = torch.cuda.current_device()
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = names.split(",") if names else [str(index) for index in range(torch.cuda.device_count())]
        if first + tensor > len(visible):
            raise InputError(f"rollout.tensor: {tensor} devices from {first} on are more than this node has")
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible[first : first + tensor])}
    cores = sorted(os.sched_getaffinity(0))
    bound = [str(cores[(leader + rank) % len(cores)]) for rank in range(tensor)]
    return {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(bound)} | (
        {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    )
