"""Qwen3: norms on q and k, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, refuse

ARCHITECTURE = "Qwen3ForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    refuse(raw, use_sliding_window=False, attention_bias=False)
    return common_config(raw, family="qwen3", architecture=ARCHITECTURE, qk_norm=True)


FAMILY = Family(
    "qwen3",
    ARCHITECTURE,
    {**COMMON_DEFAULTS, "head_dim": 128, "use_sliding_window": False, "attention_bias": False},
    parse,
    dense_rules,
)
