"""A toy model and its data: the parity bench's task, a four-layer Qwen2."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tools.parity_work.toy import make_prompts, make_tokenizer, merge, settings

__all__ = ["make_model", "make_prompts", "make_sft", "make_tokenizer", "merge", "settings"]


def make_model(folder: Path, *, hidden: int = 64, layers: int = 4, tied: bool = True, seed: int = 0) -> str:
    """Write an HF folder; returns its path."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=65,  # not a multiple of the tensor-parallel size
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,  # far from uniform, so that models and their updates differ visibly
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_sft(path: Path, count: int = 40) -> str:
    rng = random.Random(1)
    with path.open("w") as file:
        for _ in range(count):
            a, b = rng.randrange(10), rng.randrange(10)
            file.write(json.dumps({"prompt": f"{a}+{b}?", "response": f"\\boxed{{{a + b}}}"}) + "\n")
    return str(path)
