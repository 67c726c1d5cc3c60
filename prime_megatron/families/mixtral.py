"""Mixtral: Mistral attention, experts in every layer."""

from __future__ import annotations

from prime_megatron.families.base import Family, FamilyConfig, Rule
from prime_megatron.families.common import (
    COMMON_DEFAULTS,
    common_config,
    expert_rules,
    layers_alike,
    no_bias,
    number_of_experts,
)
from prime_megatron.families.keys import Keys

ARCHITECTURE = "MixtralForCausalLM"


def parse(keys: Keys) -> FamilyConfig:
    layers_alike(keys)
    no_bias(keys, "attention_bias", "mlp_bias", "bias")
    return common_config(
        keys,
        family="mixtral",
        architecture=ARCHITECTURE,
        window=keys.whole_or_none("sliding_window"),
        experts=number_of_experts(keys),
        experts_per_token=keys.whole("num_experts_per_tok"),
        expert_ffn=keys.whole("intermediate_size"),
    )


def rules(config: FamilyConfig) -> tuple[Rule, ...]:
    return expert_rules(config, "block_sparse_moe", "w1", "w3", "w2")


FAMILY = Family(
    "mixtral",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 8,
        "head_dim": None,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    frozenset({"head_dim", "sliding_window"}),
    parse,
    rules,
)
