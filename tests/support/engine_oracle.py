"""What vLLM and SGLang make of a checkpoint, in numpy: the oracle of the reshard tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def engine_tensors(
    config: Any, tensors: Mapping[str, np.ndarray], ranks: int, rank: int, expert_size: int = 1
) -> dict[str, np.ndarray]:
    """The parameters of a rank of vLLM or SGLang, from how those engines load a checkpoint; padding rows are 0.

    expert_size: SGLang's ep_size: rank r of the tensor-parallel ranks is expert rank r // (ranks / ep_size), and within
    it rank r % (ranks / ep_size) of those that split an expert.
    """
    inner = ranks // expert_size

    def cut_expert(array: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.split(array, inner, axis=axis)[rank % inner]

    def cut(array: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.split(array, ranks, axis=axis)[rank]

    def heads(array: np.ndarray) -> np.ndarray:
        if config.kv_heads >= ranks:
            return cut(array)
        return np.split(array, config.kv_heads)[rank // (ranks // config.kv_heads)]

    mixtral = config.architecture == "MixtralForCausalLM"
    block = "block_sparse_moe" if mixtral else "mlp"
    projections = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    made: dict[str, np.ndarray] = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = (-len(tensors[name])) % 64
            made[name] = cut(np.pad(tensors[name], ((0, rows), (0, 0))))
    made["model.norm.weight"] = tensors["model.norm.weight"]
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        attn, mlp = f"{at}self_attn.", f"{at}{block}."
        for kind in ("weight", "bias"):
            if f"{attn}q_proj.{kind}" in tensors:
                q, k, v = (tensors[f"{attn}{name}_proj.{kind}"] for name in "qkv")
                made[f"{attn}qkv_proj.{kind}"] = np.concatenate([cut(q), heads(k), heads(v)])
        made[f"{attn}o_proj.weight"] = cut(tensors[f"{attn}o_proj.weight"], axis=1)
        for name in (
            "self_attn.q_norm",
            "self_attn.k_norm",
            "input_layernorm",
            "post_attention_layernorm",
            f"{block}.gate",
        ):
            if f"{at}{name}.weight" in tensors:
                made[f"{at}{name}.weight"] = tensors[f"{at}{name}.weight"]
        if config.experts:
            mine = np.split(np.arange(config.experts), expert_size)[rank // inner]
            gate, up, down = (
                [tensors[f"{mlp}experts.{expert}.{name}.weight"] for expert in mine] for name in projections
            )
            w13 = [np.concatenate([cut_expert(g), cut_expert(u)]) for g, u in zip(gate, up, strict=True)]
            made[f"{mlp}experts.w13_weight"] = np.stack(w13)
            made[f"{mlp}experts.w2_weight"] = np.stack([cut_expert(d, axis=1) for d in down])
        else:
            gate, up = (cut(tensors[f"{mlp}{name}_proj.weight"]) for name in ("gate", "up"))
            made[f"{mlp}gate_up_proj.weight"] = np.concatenate([gate, up])
            made[f"{mlp}down_proj.weight"] = cut(tensors[f"{mlp}down_proj.weight"], axis=1)
    return made
