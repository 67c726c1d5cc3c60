"""The work of the step bench: a tiny Qwen2, prompts of random words, a reward that costs nothing.

One step: 8 prompts x 4 responses of exactly 64 new tokens to 16 prompt tokens, one optimizer step, no KL term.
"""

import json
import random
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 4, 16, 64
VOCAB, HIDDEN, LAYERS = 1024, 128, 4
LEARNING_RATE = 1e-5
SPECIAL = ("<pad>", "<eos>", "<unk>")


def make_model(folder: Path) -> str:
    """Write the model and a tokenizer of whole words; returns the folder."""
    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), VOCAB))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def prompts(count: int) -> list[str]:
    """Random words, PROMPT_TOKENS each."""
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(len(SPECIAL), VOCAB)}" for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def make_prompts(path: Path, count: int, ability: str) -> str:
    """Write the prompts as training rows; returns the path."""
    with path.open("w") as file:
        for text in prompts(count):
            row = {
                "data_source": "bench",
                "prompt": [{"role": "user", "content": text}],
                "ability": ability,
                "reward_model": {"style": "rule", "ground_truth": "none"},
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def reward(text: str) -> float:
    """A trivial function of the response, so that the time is the trainer's own."""
    return zlib.crc32(text.encode()) % 7 / 7
