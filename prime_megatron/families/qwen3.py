"""Qwen3: norms on q and k, no biases unless attention_bias."""

from __future__ import annotations

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, no_bias, windows
from prime_megatron.families.keys import Keys
from prime_megatron.families.qwen2 import WINDOW_DEFAULTS

ARCHITECTURE = "Qwen3ForCausalLM"


def parse(keys: Keys) -> FamilyConfig:
    no_bias(keys, "mlp_bias")
    window, full = windows(keys)
    bias = keys.flag("attention_bias")
    return common_config(
        keys,
        family="qwen3",
        architecture=ARCHITECTURE,
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
        full_layers=full,
    )


FAMILY = Family(
    "qwen3",
    ARCHITECTURE,
    {**COMMON_DEFAULTS, **WINDOW_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    frozenset({"num_key_value_heads", "sliding_window", "layer_types"}),
    parse,
    dense_rules,
)
