"""Llama 2 and 3 (llama3 rope scaling), and models that use its code, such as SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, refuse

ARCHITECTURE = "LlamaForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    refuse(raw, attention_bias=False, mlp_bias=False)
    return common_config(raw, family="llama", architecture=ARCHITECTURE)


FAMILY = Family(
    "llama",
    ARCHITECTURE,
    {**COMMON_DEFAULTS, "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 2048},
    parse,
    dense_rules,
)
