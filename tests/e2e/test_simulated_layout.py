"""The 72B example's layout, small enough for a CPU: its layers, heads and pipeline stages are the real ones, its widths
and its number of data-parallel ranks are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prime_megatron.config.load import load_train_config
from tests.support.public_models import CONFIGS
from tests.support.runs import check_same, judge, run
from tests.support.toy import make_prompts, make_tokenizer, merge, settings

EXAMPLE = Path(__file__).parents[2] / "examples/qwen2.5_72b/prime.yaml"
HEAD_DIM = 2


def make_narrow(folder: Path, public: str) -> str:
    """A random model with the layers and heads of a public one and two dimensions a head."""
    real = CONFIGS[public]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=65,
        hidden_size=HEAD_DIM * real["num_attention_heads"],
        intermediate_size=64,
        num_hidden_layers=real["num_hidden_layers"],
        num_attention_heads=real["num_attention_heads"],
        num_key_value_heads=real["num_key_value_heads"],
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.05,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.timeout(900)
def test_two_steps_of_the_72b_layout(tmp_path: Path) -> None:
    """Tensor 2 x pipeline 4 (20 layers a stage) x data 2, 16 processes, against one: every metric within 1e-5."""
    example = load_train_config(str(EXAMPLE), []).parallel
    parallel = {**example.model_dump(mode="json"), "tensor": 2, "timeout_s": 600.0}
    assert (example.pipeline, example.sequence, example.distributed_optimizer) == (4, True, True)
    assert parallel["offload"] == "generation"
    lr = {"optimizer": {"lr": 3e-5}}
    base = settings(
        make_narrow(tmp_path / "policy", "Qwen2.5-72B-Instruct"),
        make_prompts(tmp_path / "prompts.jsonl"),
        tmp_path / "recorded",
        run={"steps": 2},
        models={"policy": lr, "prm": {**lr, "path": make_narrow(tmp_path / "prm", "Qwen2.5-7B-Instruct")}},
        rollout={"prompts_per_step": 4, "samples_per_prompt": 2, "sampling": {"max_response_tokens": 6}},
        prm={"norm": "none"},
        packing={"max_sequences": 1},
    )
    run(merge(base, {"rollout": {"record": str(tmp_path / "raw.jsonl")}}))
    replay = judge(tmp_path / "raw.jsonl", tmp_path / "judged.jsonl")
    base = merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    expected = run(merge(base, {"run": {"output_dir": str(tmp_path / "one")}}))
    assert expected[-1]["policy/grad_norm"] > 0.0 and expected[-1]["prm/grad_norm"] > 0.0
    metrics = run(merge(base, {"run": {"output_dir": str(tmp_path / "many")}, "parallel": parallel}), 16, 800.0)
    check_same(expected, metrics)
