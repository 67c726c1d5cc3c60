"""config.json of public models (the values on their Hugging Face pages that say what the model is), without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-Math-7B": _QWEN25_7B,
    "Qwen2.5-7B-Instruct": {**_QWEN25_7B, "max_position_embeddings": 32768, "rope_theta": 1000000.0},
    "Qwen2.5-72B-Instruct": {
        **_QWEN25_7B, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [],
        "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    },
}  # fmt: skip
CONFIGS["Eurus-2-7B-SFT"] = CONFIGS["Qwen2.5-Math-7B"]
PARAMETERS = {
    "Qwen2.5-Math-7B": 7_615_616_512, "Qwen2.5-72B-Instruct": 72_706_203_648, "Qwen3-30B-A3B": 30_532_122_624,
}  # fmt: skip
"""What their safetensors index holds (total_size / 2)."""


def make_folder(where: Path, name: str) -> str:
    """A model folder with just its config.json, below ``where``."""
    folder = where / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    return str(folder)
