#!/usr/bin/env python3
"""Make the starred quiz: a task in which most of a response does not decide its outcome. Data and two untrained Qwen2.

    python examples/starred/make_task.py [--output runs/starred_task] [--seed 0]

A quiz asks for the numbers that lie on 16 squares of a board, which nobody has told the model; three of the lines are
starred. The answer repeats the lines and fills them all in, and is right when the starred ones are:

    Number the squares. Stars count.      - d7=4
    - d7=?                                * a1=9
    * a1=?                                ...
    ...

The answers that the model learns from first are a guesser's: for each of the 64 squares he has one wrong number in
mind, and gives the right one with a probability of 0.45 to 0.75. A model that has learnt them well is as unsure.
Reinforcement learning has to find, from outcomes alone, which number is right on every square; a response has 13 lines
that add nothing to its outcome but noise.

Writes train.jsonl and eval.jsonl (Eurus-2-RL schema; the ground truth is the quiz filled in), sft.jsonl (messages), and
in Hugging Face format model/ (two layers, the policy's) and small/ (one layer, for a PRM of half the size).
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quickstart.make_task import save_model, word_tokenizer, write_rows

NUM_TRAIN, NUM_EVAL, NUM_SFT = 8192, 256, 12000
NUM_LINES, NUM_STARRED = 16, 3
LOWEST_SKILL, HIGHEST_SKILL = 0.45, 0.75
"""Bounds of the probability with which the guesser is right on a square."""

SQUARES = tuple(f"{column}{row}" for column in "abcdefgh" for row in range(1, 9))
INSTRUCTION = "Number the squares. Stars count."
STARRED, PLAIN = "\n* ", "\n- "
PHRASES = ("user\n", "assistant\n", INSTRUCTION, STARRED, PLAIN, *(f"{square}=" for square in SQUARES))


@dataclass(frozen=True)
class Square:
    """What lies on a square, and what the guesser makes of it."""

    right: int
    wrong: int
    skill: float
    """Probability that he gives the right number."""


Board = dict[str, Square]


@dataclass(frozen=True)
class Quiz:
    """Lines to fill in: (square, starred)."""

    lines: tuple[tuple[str, bool], ...]

    def text(self, numbers: list[str]) -> str:
        """A line for each square: star or dash, square, number."""
        return "".join(
            f"{STARRED if starred else PLAIN}{square}={number}"
            for (square, starred), number in zip(self.lines, numbers, strict=True)
        )

    @property
    def prompt(self) -> str:
        return INSTRUCTION + self.text(["?"] * len(self.lines))

    def solved(self, board: Board) -> str:
        """Every number right: the ground truth."""
        return self.text([str(board[square].right) for square, _ in self.lines])

    def guessed(self, board: Board, rng: random.Random) -> str:
        """As the guesser answers."""
        asked = [board[square] for square, _ in self.lines]
        return self.text([str(one.right if rng.random() < one.skill else one.wrong) for one in asked])


def make_board(rng: random.Random) -> Board:
    """A number on every square, another one that the guesser has in mind, and his skill there."""
    board = {}
    for square in SQUARES:
        right, wrong = rng.sample(range(10), 2)
        board[square] = Square(right, wrong, rng.uniform(LOWEST_SKILL, HIGHEST_SKILL))
    return board


def make_quiz(rng: random.Random) -> Quiz:
    """NUM_LINES different squares, NUM_STARRED of them starred."""
    squares = rng.sample(SQUARES, NUM_LINES)
    starred = set(rng.sample(squares, NUM_STARRED))
    return Quiz(tuple((square, square in starred) for square in squares))


def rl_row(quiz: Quiz, board: Board, split: str, index: int) -> dict[str, object]:
    """A prompt and its ground truth in the schema of Eurus-2-RL-Data."""
    return {
        "data_source": "starred",
        "prompt": [{"role": "user", "content": quiz.prompt}],
        "ability": "starred",
        "reward_model": {"style": "rule", "ground_truth": quiz.solved(board)},
        "extra_info": {"split": split, "index": index},
    }


def sft_row(quiz: Quiz, board: Board, rng: random.Random) -> dict[str, object]:
    """A chat with the guesser's answer."""
    return {
        "messages": [
            {"role": "user", "content": quiz.prompt},
            {"role": "assistant", "content": quiz.guessed(board, rng)},
        ]
    }


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each star or dash, square and number: three a line."""
    return word_tokenizer(PHRASES)


def make(output: Path, seed: int) -> None:
    """Everything, the same for the same seed."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    board = make_board(rng)
    parts = {"test": NUM_EVAL, "train": NUM_TRAIN}
    for split, count in parts.items():
        rows = [rl_row(make_quiz(rng), board, split, index) for index in range(count)]
        write_rows(output / ("eval.jsonl" if split == "test" else "train.jsonl"), rows)
    write_rows(output / "sft.jsonl", [sft_row(make_quiz(rng), board, rng) for _ in range(NUM_SFT)])
    logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    save_model(output / "model", tokenizer, seed)
    save_model(output / "small", tokenizer, seed, num_layers=1)
    print(f"{output / 'model'}, {output / 'small'}: untrained Qwen2 of two layers and of one")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the starred quiz: data and two untrained models.")
    parser.add_argument("--output", type=Path, default=Path("runs/starred_task"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seeds board, quizzes, guesses and the models' weights")
    options = parser.parse_args()
    make(options.output, options.seed)


if __name__ == "__main__":
    main()
