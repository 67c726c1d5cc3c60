"""A model of Qwen2.5-1.5B's shape with random weights, and steps to replay on it: `python tools/replay_task.py FOLDER`.

For `tools/gpu_check.py`: what a step costs at a real size, without an engine. FOLDER gets model/ (bfloat16, 3.1 GB) and
recording.jsonl: two steps of 16 prompts x 4 samples, 100 tokens + 700 to 1,300 tokens each, half of them right.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from examples.quickstart.make_task import VOCAB_SIZE, make_tokenizer
from prime_megatron.device import current_device
from prime_megatron.types import Group, Prompt, Sample

STEPS, PROMPTS, SAMPLES = 2, 16, 4


@dataclass(frozen=True)
class Size:
    """Of the model and of a sequence, in tokens."""

    hidden: int = 1536
    ffn: int = 8960
    layers: int = 28
    heads: int = 12
    kv_heads: int = 2
    vocab: int = 151_936
    prompt: int = 100
    shortest: int = 700
    longest: int = 1300


def write_model(folder: Path, size: Size) -> None:
    """The worksheets' tokenizer with a model of more tokens than it has."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.ffn, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, tie_word_embeddings=True,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, dtype="bfloat16",
    )  # fmt: skip
    with current_device():
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recording(path: Path, size: Size) -> None:
    """Random tokens; siblings are right in turn."""
    rng = random.Random(0)
    with path.open("w") as file:
        for step in range(1, STEPS + 1):
            groups = [asdict(_group(rng, f"{step}-{place}", place, size)) for place in range(PROMPTS)]
            file.write(json.dumps({"step": step, "groups": groups}) + "\n")


def _group(rng: random.Random, uid: str, draw: int, size: Size) -> Group:
    prompt = Prompt(uid, draw, tuple(_tokens(rng, size.prompt)), ability="exact", ground_truth="")
    samples = []
    for place in range(SAMPLES):
        tokens = tuple(_tokens(rng, rng.randint(size.shortest, size.longest)))
        logprobs = (-1.0,) * len(tokens)
        samples.append(Sample(tokens, logprobs, "length", version=0, outcome=float((draw + place) % 2)))
    return Group(prompt, tuple(samples))


def _tokens(rng: random.Random, count: int) -> list[int]:
    """Of the tokenizer's, without its four special ones."""
    return rng.choices(range(4, VOCAB_SIZE // 2), k=count)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model", Size())
    write_recording(folder / "recording.jsonl", Size())
    print(f"{folder}: {STEPS} steps of {PROMPTS} x {SAMPLES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
