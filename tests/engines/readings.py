"""An engine's reading of config.json against ours, for every family: no engine is started."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.base import RopeScaling
from prime_megatron.families.read import read_config

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 101, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "torch_dtype": "float32",
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
YARN = {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 3e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rope_parameters": LLAMA3, "attention_bias": True, "head_dim": 16},
    "MistralForCausalLM": {"rope_theta": 300.0, "sliding_window": 32},
    "MixtralForCausalLM": {"rope_scaling": {"type": "linear", "factor": 2.0}, **EXPERTS},
    "Qwen2ForCausalLM": {"rope_scaling": YARN, "tie_word_embeddings": True, "head_dim": 16},
    "Qwen3ForCausalLM": {"attention_bias": True, "rope_theta": 7e5},
    "Qwen3MoeForCausalLM": {"norm_topk_prob": True, **EXPERTS},
}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("rope_theta is 2.0 for the trainer", {"rope_theta": 2.0}),
    ("rope_type is 'linear' for the trainer", {"rope_scaling": RopeScaling("linear", 3.0)}),
    ("num_key_value_heads is 1", {"kv_heads": 1}),
    ("num_attention_heads is 8", {"heads": 8}),
    ("head_dim is 6", {"head_dim": 6}),
    ("rms_norm_eps is 0.5", {"norm_eps": 0.5}),
    ("vocab_size is 7", {"vocab": 7}),
    ("experts is 3", {"experts": 3}),
    ("windows by layer is [3, 3]", {"window": 3}),
]
TYPES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe",
}  # fmt: skip


def check(folder: Path, read: Callable[[str], Any], compare: Callable[..., None]) -> None:
    """Every family reads alike; every change of ours is one line that names the key and both values.

    Args:
        read: the engine's config object of a folder.
        compare: its module's ``check_reading``.
    """
    for architecture, keys in MODELS.items():
        at = folder / architecture
        at.mkdir()
        raw = {"architectures": [architecture], "model_type": TYPES[architecture], **SIZES, **keys}
        (at / "config.json").write_text(json.dumps(raw))
        family, theirs = read_config(at), read(str(at))
        windows = [family.layer_window(layer) for layer in range(2)]

        def told(ours: FamilyConfig, theirs: Any = theirs, windows: Any = windows, at: Path = at) -> str:
            with pytest.raises(InputError) as caught:
                compare(ours, theirs, windows, str(at), 512)
            return str(caught.value)

        compare(family, theirs, windows, str(at), 512)
        linear = family.rope_scaling is not None and family.rope_scaling.kind == "linear"
        for words, change in [*CHANGES[: 1 if linear else 2], *CHANGES[2:]]:
            line = told(dataclasses.replace(family, **change))
            assert line.startswith(f"{at}/config.json: {words}") and "for the trainer" in line, line
            assert "\n" not in line
        assert "tie_word_embeddings is" in told(dataclasses.replace(family, tied=not family.tied))
        if family.rope_scaling is not None:
            other = dataclasses.replace(family.rope_scaling, factor=5.0)
            assert "(rotary)" in told(dataclasses.replace(family, rope_scaling=other))
        if architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"):
            biases = {"qkv_bias": not family.qkv_bias, "output_bias": not family.output_bias}
            assert "attention_bias is" in told(dataclasses.replace(family, **biases))
        if family.experts:
            assert "num_experts_per_tok is 3" in told(dataclasses.replace(family, experts_per_token=3))
