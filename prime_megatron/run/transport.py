"""Which way the policy's weights take to the engine, and what that costs in memory."""

from __future__ import annotations

from prime_megatron import device
from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.errors import InputError
from prime_megatron.families.read import read_config


def is_in_process(config: TrainConfig) -> bool:
    """Whether vLLM runs in the trainer's own processes."""
    return config.rollout.engine == "vllm" and config.rollout.vllm.in_process


def transport_of(config: TrainConfig) -> str:
    """live, bucket, broadcast or disk, for sglang and vllm.

    Raises:
        InputError: a way that does not reach the engine on this device.
    """
    transport = config.rollout.transport
    if is_in_process(config):
        # On a GPU vLLM may lay out a layer's experts anew for its kernels: only its own reload knows how.
        shuffled = device.on_gpu() and read_config(policy_folder_of(config)).experts > 0
        if transport == "live" and shuffled:
            raise InputError(
                "rollout.transport: live does not reach vLLM's mixtures of experts on a GPU; set it to bucket or auto"
            )
        return "bucket" if transport == "bucket" or shuffled else "live"
    if transport == "auto":
        return "bucket" if device.on_gpu() else "live"
    if transport == "live" and device.on_gpu():
        raise InputError(
            "rollout.transport: live reaches an engine on a CPU only; on GPUs bucket is the shortest way (CUDA IPC)"
        )
    return transport


def describe_engine(config: TrainConfig) -> str:
    """One line for the start of a run: who generates, how the weights get there, what that costs in memory."""
    rollout = config.rollout
    if rollout.engine not in ("sglang", "vllm"):
        return f"rollout: {rollout.engine} engine; weights are written in place"
    form = "server" if rollout.engine == "sglang" and rollout.sglang.server else "engine"
    form = "in the trainer's processes" if is_in_process(config) else form
    where = "GPU" if device.on_gpu() else "CPU"
    sizes = f"tensor {rollout.tensor}" + (f", expert {rollout.expert}" if rollout.expert > 1 else "")
    return f"rollout: {rollout.engine} {form} on {where}, {sizes}; weights by {_way(config)}"


def _way(config: TrainConfig) -> str:
    rollout, parallel = config.rollout, config.parallel
    size = f"{rollout.bucket_bytes / 2**20:g} MiB"
    largest = f"{size} (or the largest tensor)"
    opened = "CUDA IPC" if device.on_gpu() else "shared memory"
    travels = parallel.pipeline * parallel.expert * (parallel.expert_tensor or 1) > 1
    ways = {
        "live": "live, written in place into the engine's parameters; no second copy"
        + (f", {size} a rank for what other ranks hold" if travels else ", no buckets"),
        "bucket": f"bucket, two buffers of {largest} a replica during an update, opened by the engine in place "
        f"({opened}); no second copy",
        "broadcast": f"broadcast over gloo through the host, two buffers of {largest} a replica, one of every engine "
        "process during an update; no second copy",
        "disk": f"disk: a second whole copy of the weights, one a replica, stays in {config.run.output_dir}, "
        "where the engine loads it from",
    }
    if is_in_process(config):
        ways["bucket"] = f"bucket, {largest} a process during an update, reloaded in place by vLLM; no second copy"
    return ways[transport_of(config)]
