"""Qwen3-MoE: Qwen3 attention, experts in every layer."""

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

ARCHITECTURE = "Qwen3MoeForCausalLM"


def parse(keys: Keys) -> FamilyConfig:
    layers_alike(keys)
    no_bias(keys, "mlp_bias")
    keys.only("decoder_sparse_step", 1)
    keys.only("mlp_only_layers", [], None)
    window = keys.whole_or_none("sliding_window")
    bias = keys.flag("attention_bias")
    return common_config(
        keys,
        family="qwen3_moe",
        architecture=ARCHITECTURE,
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        window=window if keys.flag("use_sliding_window") else None,
        experts=number_of_experts(keys),
        experts_per_token=keys.whole("num_experts_per_tok"),
        expert_ffn=keys.whole("moe_intermediate_size"),
        normalize_expert_weights=keys.flag("norm_topk_prob"),
    )


def rules(config: FamilyConfig) -> tuple[Rule, ...]:
    return expert_rules(config, "mlp", "gate_proj", "up_proj", "down_proj")


FAMILY = Family(
    "qwen3_moe",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 4,
        "head_dim": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
    frozenset({"sliding_window", "mlp_only_layers"}),
    parse,
    rules,
)
