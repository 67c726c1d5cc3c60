"""Mistral: Llama with a sliding attention window in its first version."""

from __future__ import annotations

from prime_megatron.errors import InputError
from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, no_bias
from prime_megatron.families.keys import Keys

ARCHITECTURE = "MistralForCausalLM"


def parse(keys: Keys) -> FamilyConfig:
    if "layer_types" in keys.raw:
        raise InputError(
            "layer_types: transformers reads a Mistral that has them as a Ministral, which is unknown here"
        )
    no_bias(keys, "attention_bias", "mlp_bias", "bias")
    window = keys.whole_or_none("sliding_window")
    return common_config(keys, family="mistral", architecture=ARCHITECTURE, window=window)


FAMILY = Family(
    "mistral",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 8,
        "head_dim": None,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    frozenset({"head_dim", "sliding_window"}),
    parse,
    dense_rules,
)
