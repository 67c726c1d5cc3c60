"""An engine that lacks a part of the model is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.check_models import check_models, compare_models


def config_for(folder: Path, engine: str) -> TrainConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaConfig(architectures=["LlamaForCausalLM"], mlp_bias=True, **sizes, **heads).save_pretrained(folder)
    values = {
        "run": {"output_dir": "out", "steps": 1},
        "models": {"policy": {"path": str(folder)}},
        "data": {"train": ["x.jsonl"]},
        "rollout": {"engine": engine},
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
