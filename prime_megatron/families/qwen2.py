"""Qwen2 and Qwen2.5 (also Math and Coder): biases on q, k, v."""

from __future__ import annotations

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, no_bias, windows
from prime_megatron.families.keys import Keys

ARCHITECTURE = "Qwen2ForCausalLM"
WINDOW_DEFAULTS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}


def parse(keys: Keys) -> FamilyConfig:
    no_bias(keys, "mlp_bias")
    window, full = windows(keys)
    return common_config(
        keys, family="qwen2", architecture=ARCHITECTURE, qkv_bias=True, window=window, full_layers=full
    )


FAMILY = Family(
    "qwen2",
    ARCHITECTURE,
    {**COMMON_DEFAULTS, **WINDOW_DEFAULTS, "num_key_value_heads": 32, "head_dim": None},
    frozenset({"num_key_value_heads", "sliding_window", "layer_types"}),
    parse,
    dense_rules,
)
