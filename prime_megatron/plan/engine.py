"""Bytes of the generation engine on one GPU."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import TrainConfig
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.count import num_parameters, rank_parameters
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.plan.roles import ITEMSIZE

MIB = 2**20
ASLEEP_BYTES = 1400 * MIB
"""An SGLang process that sleeps: 1,398 to 1,416 MiB on an H200, of which 612 are its bare CUDA context."""
BEYOND_SHARE_BYTES = 2050 * MIB
"""What an SGLang process took on an H200 above its share when awake (context, graphs, workspaces): 2,052 MiB at
a share of 43.7 GiB, 2,040 MiB at 65.5."""
BARE_CONTEXT_BYTES = 612 * MIB
"""A process's CUDA context alone, on an H200."""


@dataclass(frozen=True)
class EngineMemory:
    """One GPU of an engine replica, the first, where the weights come in."""

    weights: float
    one_sequence: float
    """KV cache of the longest sequence: without it nothing can be generated."""
    fraction: float | None
    """Share of the device's memory that the engine takes; None: the embedded engine, which takes what it needs."""
    cache: float
    """KV cache of the embedded engine at max_concurrent sequences of the longest kind."""
    visitors: float
    """CUDA contexts of the replica's other processes: they open the buckets in place, on this GPU."""

    @property
    def asleep(self) -> float:
        """While models train."""
        return 0.0 if self.fraction is None else ASLEEP_BYTES + self.visitors

    @property
    def loading(self) -> float:
        """While it takes new weights, its KV cache asleep."""
        return self.weights + (0.0 if self.fraction is None else BEYOND_SHARE_BYTES + self.visitors)

    def share(self, device_bytes: float | None) -> float:
        """Weights and KV cache while it generates; the least it can do with where the device is not known."""
        if self.fraction is None:
            return self.weights + self.cache
        if device_bytes is None:
            return self.weights + self.one_sequence
        return self.fraction * device_bytes

    def generating(self, device_bytes: float | None) -> float:
        """All it takes while it generates."""
        beyond = 0.0 if self.fraction is None else BEYOND_SHARE_BYTES + self.visitors
        return self.share(device_bytes) + beyond


def engine_memory(config: TrainConfig, policy: FamilyConfig) -> EngineMemory:
    """The engine of a run, whose model is the policy."""
    rollout = config.rollout
    itemsize = ITEMSIZE[rollout.dtype or config.models.dtype]
    longest = config.data.max_prompt_tokens + rollout.sampling.max_response_tokens
    kv_heads = max(1, policy.kv_heads // rollout.tensor)
    token = 2 * policy.layers * kv_heads * policy.head_dim * itemsize
    if rollout.engine in ("embedded", "replay"):
        cache = float(token * longest * rollout.max_concurrent)
        return EngineMemory(float(num_parameters(policy) * itemsize), token * longest, None, cache, visitors=0.0)
    sizes = ParallelSizes(
        rollout.tensor, rollout.tensor, expert=rollout.expert, expert_tensor=rollout.tensor // rollout.expert
    )
    weights = float(rank_parameters(policy, sizes, 0).total * itemsize)
    own = rollout.sglang if rollout.engine == "sglang" else rollout.vllm
    in_place = not (rollout.engine == "vllm" and rollout.vllm.in_process)
    visitors = float(BARE_CONTEXT_BYTES * (rollout.tensor - 1)) if in_place else 0.0
    return EngineMemory(weights, token * longest, own.memory_fraction, 0.0, visitors=visitors)
