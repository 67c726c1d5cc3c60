"""Mistral: Llama with a sliding attention window in its first version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules

ARCHITECTURE = "MistralForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    return common_config(raw, family="mistral", architecture=ARCHITECTURE, window=raw["sliding_window"])


FAMILY = Family(
    "mistral",
    ARCHITECTURE,
    {**COMMON_DEFAULTS, "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    parse,
    dense_rules,
)
