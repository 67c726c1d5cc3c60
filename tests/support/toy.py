"""A toy task (additions of two digits, a character tokenizer), a four-layer Qwen2 for it, a run of three steps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ["<pad>", "<eos>", "<user>", "<bot>"]
CHARACTERS = "0123456789+=\\boxed{} ?abcdefghijklmnopqrstuvwxyz\n"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% else %}<bot>{{ m['content'] }}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: index for index, token in enumerate([*SPECIAL, *sorted(set(CHARACTERS))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(SPECIAL) + r"|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    fast.chat_template = TEMPLATE
    return fast


def make_prompts(path: Path, count: int = 40) -> str:
    """Write additions in the Eurus-2-RL schema; returns the path. "exact" answers: half of the toy's are right."""
    rng = random.Random(0)
    with path.open("w") as file:
        for index in range(count):
            a, b = rng.randrange(10), rng.randrange(10)
            row = {
                "data_source": "toy",
                "prompt": [{"role": "user", "content": f"{a}+{b}?"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                "extra_info": {"split": "train", "index": index, "least": 1},
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def settings(model: str, prompts: str, output: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A run of three steps on the toy, float32, all groups kept; sections are merged over it."""
    base: dict[str, Any] = {
        "run": {"output_dir": str(output), "steps": 3},
        "models": {
            "dtype": "float32",
            "policy": {"path": model, "optimizer": {"lr": 3e-4}},
            "prm": {"optimizer": {"lr": 3e-4, "clip_grad": 1.0}},
        },
        "data": {"train": [prompts]},
        "rollout": {
            "engine": "embedded",
            "prompts_per_step": 5,
            "samples_per_prompt": 4,
            "sampling": {"max_response_tokens": 10},
            "filter": {"lower": 0.0, "upper": 1.0},
        },
        "parallel": {"timeout_s": 60.0},
        "checkpoint": {"export_final": False, "save_final": False},
        "log": {"tensorboard": False},
    }
    return merge(base, sections)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Deep merge; ``over`` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


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
