"""Mixtral: Mistral attention, experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.families.base import Family, FamilyConfig, Rule
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, expert_rules

ARCHITECTURE = "MixtralForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    return common_config(
        raw,
        family="mixtral",
        architecture=ARCHITECTURE,
        window=raw["sliding_window"],
        experts=raw["num_local_experts"],
        experts_per_token=raw["num_experts_per_tok"],
        expert_ffn=raw["intermediate_size"],
    )


def rules(config: FamilyConfig) -> tuple[Rule, ...]:
    return expert_rules(config, "block_sparse_moe", "w1", "w3", "w2")


FAMILY = Family(
    "mixtral",
    ARCHITECTURE,
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    parse,
    rules,
)
