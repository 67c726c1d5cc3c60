"""What SGLang made of a model folder (written against 0.5.23), beside what the trainer made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang.srt.configs.model_config import ModelConfig

from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.check import compare_facts, facts_of, windows_within


def model_config(arguments: Mapping[str, Any]) -> ModelConfig:
    """SGLang's reading of the folder, with the arguments of its engine."""
    return ModelConfig(
        arguments["model_path"],
        trust_remote_code=arguments["trust_remote_code"],
        model_override_args=arguments["json_model_override_args"],
        dtype=arguments["dtype"],
    )


def check_reading(
    family: FamilyConfig, config: ModelConfig, windows: Sequence[int | None], folder: str, max_tokens: int
) -> None:
    """Compare SGLang's ModelConfig, and the windows of its attention layers; arguments and errors as vLLM's."""
    facts = facts_of(config.hf_text_config)
    del facts["max_position_embeddings"]  # settings.max_tokens is the engine's limit
    facts |= {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "windows by layer": list(windows),
    }
    own, theirs = windows_within(family, facts, max_tokens)
    compare_facts(own, theirs, f"{folder}/config.json", "SGLang")
