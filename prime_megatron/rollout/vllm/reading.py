"""What vLLM made of a model folder (written against 0.32), beside what the trainer made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.check import compare_facts, facts_of, windows_within


def check_reading(
    family: FamilyConfig, model_config: Any, windows: Sequence[int | None], folder: str, max_tokens: int
) -> None:
    """Compare vLLM's ModelConfig, and the windows of its attention layers.

    Args:
        windows: of every layer, in tokens; None: full attention.
        max_tokens: longest sequence; a window that holds it all is none.
    Raises:
        InputError: one line with the key, the trainer's value and vLLM's.
    """
    facts = facts_of(model_config.hf_text_config)
    del facts["max_position_embeddings"]  # settings.max_tokens is the engine's limit
    facts |= {
        "hidden_size": model_config.get_hidden_size(),
        "num_hidden_layers": model_config.get_total_num_hidden_layers(),
        "num_attention_heads": model_config.model_arch_config.total_num_attention_heads,
        "num_key_value_heads": model_config.get_total_num_kv_heads(),
        "head_dim": model_config.get_head_size(),
        "vocab_size": model_config.get_vocab_size(),
        "experts": model_config.get_num_experts(),
        "tie_word_embeddings": model_config.hf_config.tie_word_embeddings,
        "windows by layer": list(windows),
    }
    own, theirs = windows_within(family, facts, max_tokens)
    compare_facts(own, theirs, f"{folder}/config.json", "vLLM")
