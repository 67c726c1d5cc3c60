"""config.json in, sizes out; what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.errors import InputError
from prime_megatron.families.read import read_config
from prime_megatron.families.rope import inverse_frequencies

# As published: keys that transformers has defaults for are left out.
QWEN25: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}


def _write(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_qwen25(tmp_path: Path) -> None:
    config = read_config(_write(tmp_path, QWEN25))
    assert (config.family, config.hidden, config.ffn, config.layers) == ("qwen2", 1536, 8960, 28)
    assert (config.heads, config.kv_heads, config.head_dim, config.vocab) == (12, 2, 128, 151936)
    assert config.qkv_bias and config.tied and not config.qk_norm
    assert config.window is None and config.rope_scaling is None and config.experts == 0


def test_llama31_frequencies_are_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = read_config(_write(tmp_path, LLAMA31))
    assert (config.qkv_bias, config.tied, config.head_dim) == (False, False, 128)
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path)).inv_freq
    torch.testing.assert_close(inverse_frequencies(config), theirs, rtol=1e-6, atol=0)
    plain = read_config(_write(tmp_path, {**LLAMA31, "rope_scaling": None}))
    assert not torch.allclose(inverse_frequencies(plain), theirs)


def test_rope_parameters_of_transformers_5(tmp_path: Path) -> None:
    raw = {key: value for key, value in LLAMA31.items() if not key.startswith("rope")}
    raw["rope_parameters"] = {**LLAMA31["rope_scaling"], "rope_theta": 500000.0}
    assert read_config(_write(tmp_path, raw)).rope_scaling is not None
    new = inverse_frequencies(read_config(tmp_path))
    old = inverse_frequencies(read_config(_write(tmp_path, LLAMA31)))
    assert torch.equal(new, old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is unknown; known: LlamaForCausalLM, Mistral"),
        ({"architectures": None}, "architecture None is unknown"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only silu"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not supported"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_config(_write(tmp_path, {**QWEN25, **change}))
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(_write(tmp_path, "{"))
    incomplete = {key: value for key, value in QWEN25.items() if key != "hidden_size"}
    with pytest.raises(InputError, match="key 'hidden_size' is missing"):
        read_config(_write(tmp_path, incomplete))
    with pytest.raises(InputError, match="architecture None"):
        read_config(_write(tmp_path, "[]"))
