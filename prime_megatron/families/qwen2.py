"""Qwen2 and Qwen2.5 (also Math and Coder): biases on q, k, v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.families.base import Family, FamilyConfig
from prime_megatron.families.common import COMMON_DEFAULTS, common_config, dense_rules, refuse

ARCHITECTURE = "Qwen2ForCausalLM"


def parse(raw: Mapping[str, Any]) -> FamilyConfig:
    refuse(raw, use_sliding_window=False)
    return common_config(raw, family="qwen2", architecture=ARCHITECTURE, qkv_bias=True)


FAMILY = Family("qwen2", ARCHITECTURE, {**COMMON_DEFAULTS, "use_sliding_window": False}, parse, dense_rules)
