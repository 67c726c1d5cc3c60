"""Qwen3-MoE: Qwen3 attention, experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families.base import Family, FamilyConfig, Rule
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, expert_rules, refuse

ARCHITECTURE = "Qwen3MoeForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    refuse(raw, use_sliding_window=False, attention_bias=False, decoder_sparse_step=1, mlp_only_layers=[])
    experts = raw["num_experts"] if raw["num_experts"] is not None else raw["num_local_experts"]
    if experts is None:
        raise InputError("num_experts is missing")
    return common_config(
        raw,
        family="qwen3_moe",
        architecture=ARCHITECTURE,
        qk_norm=True,
        experts=experts,
        experts_per_token=raw["num_experts_per_tok"],
        expert_ffn=raw["moe_intermediate_size"],
        normalize_expert_weights=raw["norm_topk_prob"],
    )


def rules(config: FamilyConfig) -> tuple[Rule, ...]:
    return expert_rules(config, "mlp", "gate_proj", "up_proj", "down_proj")


FAMILY = Family(
    "qwen3_moe",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 4,
        "use_sliding_window": False,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": None,
        "num_local_experts": None,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
    parse,
    rules,
)
