#!/usr/bin/env python3
r"""Make the quick start's task: its data, and a small untrained Qwen2 with a tokenizer of its own.

    python examples/quickstart/make_task.py [--output runs/quickstart_task] [--seed 0]

The task is a worksheet. The prompt gives a number and lines to fill in; the answer fills them in, each line going on
from the last result, and boxes the final one:

    Fill in the blanks:        12
    12                         + 4 = 16
    + 4 = ?                    - 8 = 8
    - 8 = ?                    \boxed{8}

The worked answers that the model learns from first are a hurried pupil's: where a digit of 7 or more is taken away
across the ten, the ten is not taken off in most cases (12 - 8 = 14), and where such a digit is added across
the ten, it is not put on in one case of seven. A model that has learnt them well repeats them: its likeliest answer is
right only where a worksheet has no such subtraction. The right line is in its reach, though, and reinforcement
learning against the verified final result finds it. Which of many lines was wrong the outcome does not say: that is
what process rewards are for.

Writes train.jsonl and eval.jsonl (Eurus-2-RL schema), sft.jsonl (messages) and model/ (Hugging Face format).
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

NUM_TRAIN, NUM_EVAL, NUM_SFT = 4096, 256, 8192
NUM_LINES = 10
LARGEST = 19
"""Results stay within 0 .. LARGEST."""
HARD_DIGIT = 7
FORGOTTEN_BORROW, FORGOTTEN_CARRY = 0.55, 0.2
"""How often the pupil slips on a line that crosses the ten with a digit of HARD_DIGIT or more. An answer that slips
below zero is drawn again, which leaves a forgotten carry in one case of seven."""

INSTRUCTION = "Fill in the blanks:\n"
PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB_SIZE = 256
"""Rows of the embedding; the tokenizer uses fewer, and a round number splits over any layout."""


@dataclass(frozen=True)
class Line:
    """One line of a worksheet, as it should be filled in."""

    sign: int  # +1 or -1
    digit: int  # 1 .. 9

    @property
    def left(self) -> str:
        return f"{'+' if self.sign > 0 else '-'} {self.digit} = "


@dataclass(frozen=True)
class Worksheet:
    """A start and the lines to fill in."""

    start: int
    lines: tuple[Line, ...]

    @property
    def prompt(self) -> str:
        return INSTRUCTION + "\n".join([str(self.start), *(line.left + "?" for line in self.lines)])

    @property
    def answer(self) -> int:
        return self.start + sum(line.sign * line.digit for line in self.lines)

    def worked(self, rng: random.Random) -> str:
        """The pupil's answer, slips included; a slip is carried on to the end, though never below zero."""
        while True:
            results = [self.start]
            for line in self.lines:
                results.append(results[-1] + line.sign * line.digit + slip(results[-1], line, rng))
            if min(results) >= 0:
                break
        filled = [f"{line.left}{result}" for line, result in zip(self.lines, results[1:], strict=True)]
        return "\n".join([str(self.start), *filled, f"\\boxed{{{results[-1]}}}"])


def slip(result: int, line: Line, rng: random.Random) -> int:
    """What the pupil's next result is off by: a borrow or a carry of ten forgotten, or nothing."""
    units = result % 10 + line.sign * line.digit
    if line.digit < HARD_DIGIT or 0 <= units <= 9:
        return 0
    forgotten = FORGOTTEN_CARRY if line.sign > 0 else FORGOTTEN_BORROW
    return -10 * line.sign if rng.random() < forgotten else 0


def worksheet(rng: random.Random, num_lines: int = NUM_LINES) -> Worksheet:
    """A random worksheet whose right results all lie in 0 .. LARGEST."""
    start = result = rng.randint(0, LARGEST)
    lines: list[Line] = []
    while len(lines) < num_lines:
        line = Line(sign=rng.choice((1, -1)), digit=rng.randint(1, 9))
        if 0 <= result + line.sign * line.digit <= LARGEST:
            lines.append(line)
            result += line.sign * line.digit
    return Worksheet(start, tuple(lines))


def distinct_worksheets(rng: random.Random) -> Iterator[Worksheet]:
    """Worksheets without end, none twice."""
    seen: set[str] = set()
    while True:
        sheet = worksheet(rng)
        if sheet.prompt not in seen:
            seen.add(sheet.prompt)
            yield sheet


def rl_row(sheet: Worksheet, split: str, index: int) -> dict[str, object]:
    """A prompt and its ground truth in the schema of Eurus-2-RL-Data."""
    return {
        "data_source": "worksheet",
        "prompt": [{"role": "user", "content": sheet.prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(sheet.answer)},
        "extra_info": {"split": split, "index": index},
    }


def sft_row(sheet: Worksheet, rng: random.Random) -> dict[str, object]:
    """A chat with the pupil's worked answer."""
    return {
        "messages": [
            {"role": "user", "content": sheet.prompt},
            {"role": "assistant", "content": sheet.worked(rng)},
        ]
    }


def make_tokenizer(more_phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The worksheets' tokenizer: their phrases and numbers are a token each; so are more_phrases."""
    phrases = ["system\n", "user\n", "assistant\n", INSTRUCTION, "\\boxed{"]
    phrases += [f"{sign} {digit} = " for sign in "+-" for digit in range(1, 10)]
    return word_tokenizer([*phrases, *more_phrases], numbers=[str(number) for number in range(10, 100)])


def word_tokenizer(phrases: Sequence[str], numbers: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: phrases and numbers of two digits are a token each, other ASCII text a token a character.

    Tokens hold their spaces and line ends, and decoding joins them with nothing between, so text comes back exactly.
    """
    specials = [PAD, START, END, UNKNOWN]
    words = [*specials, *phrases, *numbers, "\n", *string.digits, *string.ascii_letters, *string.punctuation, " "]
    escaped = ["".join(f"\\x{{{ord(character):x}}}" for character in phrase) for phrase in phrases]
    if numbers:
        escaped.append("[1-9][0-9]")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*escaped, "[^\\n]", "\\n"])), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    assert len(words) == tokenizer.get_vocab_size() <= VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False, model_max_length=512,
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, num_layers: int = 2) -> Qwen2ForCausalLM:
    """Layers of width 64, untrained.

    The weights start at a deviation of about 1 / sqrt(width): with the customary 0.02 so narrow a model attends to
    everything alike at first, and spends most of the warm-up on finding out where to look.
    """
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, num_layers: int = 2) -> None:
    """The model folder: config, weights, tokenizer with its chat template."""
    make_model(tokenizer, seed, num_layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Named for loaders that would otherwise pick Qwen2's own byte-level class by the model's type.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


def make(output: Path, seed: int) -> None:
    """Everything, the same for the same seed; no worksheet is in two files."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    sheets = distinct_worksheets(rng)
    take = [next(sheets) for _ in range(NUM_EVAL + NUM_TRAIN + NUM_SFT)]
    held_out, train, worked = take[:NUM_EVAL], take[NUM_EVAL : NUM_EVAL + NUM_TRAIN], take[NUM_EVAL + NUM_TRAIN :]
    write_rows(output / "eval.jsonl", [rl_row(sheet, "test", index) for index, sheet in enumerate(held_out)])
    write_rows(output / "train.jsonl", [rl_row(sheet, "train", index) for index, sheet in enumerate(train)])
    write_rows(output / "sft.jsonl", [sft_row(sheet, rng) for sheet in worked])
    logging.disable_progress_bar()
    save_model(output / "model", make_tokenizer(), seed)
    print(f"{output / 'model'}: an untrained Qwen2, {VOCAB_SIZE} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the quick start's task: data and an untrained model.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart_task"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seeds worksheets, slips and the model's weights")
    options = parser.parse_args()
    make(options.output, options.seed)


if __name__ == "__main__":
    main()
