"""config.json in, sizes out; what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prime_megatron.errors import InputError
from prime_megatron.families.read import read_config
from prime_megatron.families.rope import attention_factor, inverse_frequencies

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
        ({"architectures": None}, "architectures is missing: the architecture is unknown; known: Llama"),
        ({"architectures": ["Qwen2ForCausalLM", "Other"]}, "is not a list of one name"),
        (
            {"architectures": ["Qwen2ForSequenceClassification"]},
            "is unknown .a head of one value: for models.critic.path",
        ),
        ({"model_type": "llama"}, "model_type = 'llama', but architectures says Qwen2ForCausalLM .'qwen2'."),
        ({"model_type": None}, "model_type = None, but"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: engines would load"),
        ({"hidden_size": True}, "hidden_size = true is not supported, only a whole number"),
        ({"hidden_size": 64.0}, "hidden_size = 64.0 is not supported"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6' is not supported, only a number above 0 with a decimal"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is null; give a value, or leave the key out .then false."),
        ({"num_key_value_heads": 5}, "num_attention_heads 12 is not a multiple of num_key_value_heads 5"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4' is not supported"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' is not supported, only a dict"),
        ({"rope_scaling": {"full_attention": None}}, "rope_scaling: one dict for each kind of layer .full_attention."),
        ({"rope_scaling": {"type": "linear"}}, "key 'rope_scaling.factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "rope_scaling.beta_fast means nothing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported, only 1.0"),
        ({"mlp_bias": True}, "mlp_bias = true is not supported: this architecture has no such biases"),
        (
            {"layer_types": ["full_attention"]},
            "layer_types has 1 entries, num_hidden_layers is 28: model.layers.1",
        ),
        (
            {"layer_types": ["sliding_attention"] * 28},
            "sliding_attention, but use_sliding_window or",
        ),
        ({"layer_types": ["chunked_attention"] * 28}, "'chunked_attention' is not supported"),
        ({"eos_token_id": "2"}, "eos_token_id = '2' is not a token id"),
        ({"pad_token_id": 151936}, "pad_token_id = 151936 is outside the vocabulary"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype = 'float8_e4m3fn' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope scaling 'dynamic' is not supported"),
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
    with pytest.raises(InputError, match="not a JSON object"):
        read_config(_write(tmp_path, "[]"))
    (tmp_path / "config.json").unlink()
    (tmp_path / ".metadata").touch()
    with pytest.raises(InputError, match="a Megatron checkpoint, not a Hugging Face folder; convert it"):
        read_config(tmp_path)


def test_a_head_is_read_for_a_critic_alone(tmp_path: Path) -> None:
    folder = _write(tmp_path, {**QWEN25, "architectures": ["Qwen2ForSequenceClassification"]})
    assert read_config(folder, value_head=True).architecture == "Qwen2ForCausalLM"


def test_windows_by_layer(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 26}
    config = read_config(_write(tmp_path, {**QWEN25, **window}))
    assert [config.layer_window(layer) for layer in (0, 25, 26, 27)] == [None, None, 8, 8]
    kinds = ["sliding_attention"] * 2 + ["full_attention"] * 26
    config = read_config(_write(tmp_path, {**QWEN25, **window, "layer_types": kinds}))
    assert [config.layer_window(layer) for layer in (0, 1, 2, 27)] == [8, 8, None, None]


def test_the_scaling_beside_wins_over_rope_parameters(tmp_path: Path) -> None:
    """As transformers 5 (convert_rope_params_to_dict), base included."""
    both = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        "rope_scaling": {"type": "linear", "factor": 2},
    }
    config = read_config(_write(tmp_path, {**QWEN25, **both}))
    assert config.rope_theta == 10000.0 and config.rope_scaling is not None and config.rope_scaling.factor == 2.0


def test_a_quantised_folder_names_key_and_tensor(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2).to(torch.float8_e4m3fn), "c": torch.zeros(2).to(torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors")
    raw = {**QWEN25, "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(InputError, match=r"quantization_config: .*model.safetensors: b is F8_E4M3"):
        read_config(_write(tmp_path, raw))


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 20.0}


def test_yarn_is_the_papers(tmp_path: Path) -> None:
    """Peng et al. 2023, section 3.2: gamma is 0 below beta_slow turns over the original length, 1 above beta_fast; in
    transformers a ramp over whole dimensions between the two. The attention factor: 0.1 ln(s) + 1 (section 3.4)."""
    folder = _write(tmp_path, {**QWEN25, "rope_scaling": YARN})
    found = inverse_frequencies(read_config(folder)).double().numpy()
    size, base, scale = 128, 10000.0, 8.0
    dims = np.arange(size // 2)
    theta = base ** (-2.0 * dims / size)
    turns = 512 * theta / (2 * np.pi)
    kept, slowed = turns > 26.0, turns < 0.75  # a dimension beyond either end, for the rounding to whole ones
    np.testing.assert_allclose(found[kept], theta[kept], rtol=1e-5)
    np.testing.assert_allclose(found[slowed], theta[slowed] / scale, rtol=1e-5)
    between = ~kept & ~slowed
    gamma = (found[between] / theta[between] - 1 / scale) / (1 - 1 / scale)
    steps = np.diff(gamma[(gamma > 1e-6) & (gamma < 1 - 1e-6)])
    assert len(steps) > 10
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert attention_factor(read_config(folder)) == pytest.approx(0.1 * np.log(8.0) + 1.0)


@pytest.mark.parametrize("extra", [{}, {"attention_factor": 0.8}, {"mscale": 0.707, "mscale_all_dim": 0.5}])
def test_transformer_engine_gets_the_attention_factor(tmp_path: Path, extra: dict[str, float]) -> None:
    """By what megatron-core's attention asks of its config."""
    from megatron.core.models.common.embeddings import yarn_rotary_pos_embedding as upstream

    from prime_megatron.config.model import ParallelConfig
    from prime_megatron.mcore.transformer_config import transformer_config
    from prime_megatron.parallel.topology import ParallelSizes

    family = read_config(_write(tmp_path, {**QWEN25, "rope_scaling": {**YARN, **extra}}))
    config = transformer_config(family, ParallelConfig(), ParallelSizes(world=1), torch.float32, te=True)
    theirs = upstream._yarn_get_concentration_factor_from_config(config)
    assert theirs == pytest.approx(attention_factor(family))
    ratio = {"attention_factor": 0.8}.get(next(iter(extra), ""))
    assert ratio is None or theirs == pytest.approx(ratio)
