"""A rough count of a model's parameters and of what each rank holds of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_megatron.config import ParallelConfig
from prime_megatron.errors import InputError

_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


def num_parameters(folder: str) -> int:
    """Parameters of a Qwen2- or Llama-like decoder, experts included, from its config.json; norms are left out.

    Raises:
        InputError: no config.json, or one that lacks a size.
    """
    path = Path(folder) / "config.json"
    try:
        hf: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: not a readable JSON file; the folder must be an HF model folder") from None
    for key in _KEYS:
        if not isinstance(hf.get(key), int):
            raise InputError(f"{path}: {key} is missing or not a whole number")
    hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
    head_size = hf.get("head_dim") or hidden // heads
    kv_heads = hf.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_size + 2 * hidden * kv_heads * head_size
    experts = hf.get("num_experts") or hf.get("num_local_experts")
    if experts:
        mlp = experts * (3 * hidden * (hf.get("moe_intermediate_size") or hf["intermediate_size"]) + hidden)
        mlp += 3 * hidden * (hf.get("shared_expert_intermediate_size") or 0)
    else:
        mlp = 3 * hidden * hf["intermediate_size"]
    tables = 1 if hf.get("tie_word_embeddings") else 2
    return int(hf["num_hidden_layers"] * (attention + mlp) + tables * hf["vocab_size"] * hidden)


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one role on one rank, activations and buffers of libraries left out."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


def trained_memory(params: int, parallel: ParallelConfig, data_size: int, dtype: str) -> RoleMemory:
    """A role that learns: weights, float32 gradients, Adam's two moments and, under bfloat16, float32 main weights.

    Tensor- and pipeline-parallel ranks share the parameters evenly here (the embedding makes the first and the last
    stage larger, replicated experts and norms every rank); the distributed optimizer shares its state over the
    data-parallel ranks.
    """
    share = params / (parallel.tensor * parallel.pipeline)
    state = 12 if dtype == "bfloat16" else 8
    shards = data_size * parallel.context if parallel.distributed_optimizer else 1
    return RoleMemory(share * _size(dtype), share * 4, share * state / shards)


def frozen_memory(params: int, num_shards: int, dtype: str) -> RoleMemory:
    """A role that only scores, or the engine's copy."""
    return RoleMemory(params / num_shards * _size(dtype), 0.0, 0.0)


def _size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
