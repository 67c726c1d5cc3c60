"""An engine that lacks a part of the model is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.check_models import check_models, compare_models

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def config_for(folder: Path, engine: str) -> TrainConfig:
    LlamaConfig(architectures=["LlamaForCausalLM"], mlp_bias=True, **SIZES).save_pretrained(folder)
    return run_of(folder, engine)


def run_of(folder: Path, engine: str, longest: int = 4096) -> TrainConfig:
    values = {
        "run": {"output_dir": "out", "steps": 1},
        "models": {"policy": {"path": str(folder)}},
        "data": {"train": ["x.jsonl"], "max_prompt_tokens": 1000},
        "rollout": {"engine": engine, "sampling": {"max_response_tokens": longest - 1000}},
    }
    return TrainConfig.model_validate_json(json.dumps(values))


def test_sglang_has_no_biases_in_the_feed_forward(tmp_path: Path) -> None:
    config = config_for(tmp_path / "model", "sglang")
    with pytest.raises(InputError, match=r"^rollout\.engine: sglang has no biases in the feed-forward, and .*mlp_bias"):
        check_models(config, 1)
    with pytest.raises(InputError, match="set the key to vllm or embedded"):
        compare_models(config)


@pytest.mark.parametrize("engine", ["vllm", "embedded"])
def test_others_have_them(engine: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "model", engine)
    check_models(config, 1)
    compare_models(config)


def test_windows_that_an_engine_lacks(tmp_path: Path) -> None:
    """SGLang has none in these families, vLLM one for all layers; a window that holds every sequence is none."""
    MistralConfig(architectures=["MistralForCausalLM"], sliding_window=2048, **SIZES).save_pretrained(tmp_path / "all")
    mixed = {"use_sliding_window": True, "sliding_window": 2048, "max_window_layers": 1}
    Qwen3Config(architectures=["Qwen3ForCausalLM"], **mixed, **SIZES).save_pretrained(tmp_path / "some")
    for folder, engine, words in (
        (
            "all",
            "sglang",
            "sglang has no attention windows for MistralForCausalLM.*of 2048 tokens.*to vllm",
        ),
        ("some", "sglang", "sglang has no attention windows in some of the layers.*set the key to embedded"),
        ("some", "vllm", "vllm has no attention windows in some of the layers for Qwen3ForCausalLM"),
    ):
        with pytest.raises(InputError, match=rf"^rollout\.engine: {words}"):
            check_models(run_of(tmp_path / folder, engine), 1)
        check_models(run_of(tmp_path / folder, engine, longest=2048), 1)
    check_models(run_of(tmp_path / "all", "vllm"), 1)
    check_models(run_of(tmp_path / "some", "embedded"), 1)
