"""Llama 2 and 3 (llama3 rope scaling), and models that use its code, such as SmolLM2."""

from __future__ import annotations

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, layers_alike, no_bias
from prime_megatron.families.keys import Keys

ARCHITECTURE = "LlamaForCausalLM"


def parse(keys: Keys) -> FamilyConfig:
    keys.unset("sliding_window", "transformers' Llama has no window")
    layers_alike(keys)
    no_bias(keys, "bias")
    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    if hidden % heads:
        keys.refuse("hidden_size", f"a multiple of num_attention_heads {heads}")
    bias = keys.flag("attention_bias")
    return common_config(
        keys,
        family="llama",
        architecture=ARCHITECTURE,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=keys.flag("mlp_bias"),
    )


FAMILY = Family(
    "llama",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": None,
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 2048,
    },
    frozenset({"num_key_value_heads", "head_dim"}),
    parse,
    dense_rules,
)
