#!/usr/bin/env python3
r"""Make the raw files of the small chain: made problems in the published form of NuminaMath-CoT, with faults planted.

    python examples/eurus2_cpu/make_sources.py [--output runs/eurus2_cpu/raw] [--seed 0] [--real ../shared/data/math]

rl.jsonl          problem, solution with a box, source, messages: rows with a ground truth, kept for RL
open.jsonl        the same without an answer: rows for supervised data
unsolvable.jsonl  question, answer, solvable: problems that have no solution and pretend to
held_out.jsonl    question, answer: the set that models are measured on
planted.json      what was planted where: kind, rules that may find it, row; written last
model/            a small untrained Qwen2 with a tokenizer of its own
real.jsonl        with --real: the first 400 rows of MATH's training split that lie there, in the form problem, answer
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.eurus2_cpu.shelf import NO_SOLUTION, PLACES, THINGS, UNKNOWN_START, Shelf, draw_shelf, move
from examples.quickstart.make_task import Line, save_model, word_tokenizer, write_rows

NUM_RL, NUM_OPEN, NUM_HELD_OUT, NUM_REAL = 2000, 5000, 256, 400
NUM_PLANTED = 30
"""Of each kind."""
OPEN_UNSOLVABLE = 0.06
"""Share of the rows for supervised data that have no solution."""
WORDING = "\nBox the answer."
"""What a prompt says after the problem (curate.yaml, suite.yaml)."""
BOXES = {
    "no_box": "So it is {}.",
    "unclosed_box": "So it is \\boxed{{{}",
    "bad_truth": "So it is \\boxed{{\\text{{?}}}}.",
}
ATTEMPTS = ("other_answer", "no_agreement", "too_hard", "unsolvable")
COPIES = ("ngram", "whole_text")

Row = dict[str, object]
Planted = dict[str, dict[str, object]]
"""Row's id -> kind and rules."""


def published(problem: str, solution: str) -> Row:
    """A row of NuminaMath-CoT."""
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
    return {"source": "made", "problem": problem, "solution": solution, "messages": messages}


def with_choices(shelf: Shelf, rng: random.Random, ask: str | None = None) -> Row:
    """A problem with four choices, whose solution names a letter."""
    numbers = sorted([shelf.answer, *rng.sample([n for n in range(30) if n != shelf.answer], 3)])
    choices = " ".join(f"({letter}) {number}" for letter, number in zip("ABCD", numbers, strict=True))
    letter = "ABCD"[numbers.index(shelf.answer)]
    return published(f"{ask or shelf.text} {choices}", f"{shelf.answer} is left. The answer is \\boxed{{{letter}}}.")


def edited(text: str, rng: random.Random) -> str:
    """A copy with other case and white space and one word changed."""
    words = text.split(" ")
    words[rng.choice([place for place, word in enumerate(words) if word.isalpha()])] = "zebra"
    return "  ".join(words).swapcase()


def in_french(shelf: Shelf) -> str:
    """A problem in another language."""
    moves = ", ".join(f"{line.digit} {'de plus' if line.sign > 0 else 'de moins'}" for line in shelf.lines)
    return f"Il y a {shelf.start} livres sur une étagère: {moves}. Combien de livres sont là pour le lecteur ?"


class Source:
    """Rows of a file, and what is planted among them. ``name``: the file's, which begins the rows' ids."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name, self.rows, self.planted = name, list[Row](), Planted()
        self._rng = rng

    def plant(self, kind: str, rules: tuple[str, ...], make: Callable[[int], Row]) -> None:
        """``make``: the row of this number."""
        for number in range(NUM_PLANTED):
            self.planted[f"{self.name}-{len(self.rows):07d}"] = {"kind": kind, "rules": list(rules)}
            self.rows.append(make(number))


def rl_source(shelves: list[Shelf], held_out: list[Shelf], rng: random.Random) -> Source:
    """Rows with a ground truth; behind the good ones those that a stage should find."""
    source = Source("rl", rng)
    source.rows += [published(shelf.text, shelf.solution()) for shelf in shelves]
    good = rng.sample(shelves, NUM_PLANTED)

    def new() -> Shelf:
        return draw_shelf(rng)

    # Words alike that no rule speaks of: these stay.
    source.rows += [published(f"Figure out: {one.text}", one.solution()) for one in (new() for _ in range(5))]
    source.rows += [published(f"To improve: {one.text}", one.solution()) for one in (new() for _ in range(5))]
    for rule, text in BOXES.items():
        source.plant(rule, (rule,), lambda n, text=text: published((one := new()).text, text.format(one.answer)))
    source.plant(
        "figure", ("figure",), lambda n: published(f"As shown in the figure, {(one := new()).text}", one.solution())
    )
    source.plant("proof", ("proof",), lambda n: published(f"{(one := new()).text} Prove it.", one.solution()))
    source.plant("French", ("language",), lambda n: published(in_french(one := new()), one.solution()))
    source.plant("same words", ("duplicate",), lambda n: published(good[n].text.upper(), good[n].solution()))
    source.plant(
        "one word other", ("near_duplicate",),
        lambda n: published(good[n].text.replace(good[n].place, "pot"), good[n].solution()),
    )  # fmt: skip
    source.plant("held-out copy", COPIES, lambda n: published(edited(held_out[n].text, rng), held_out[n].solution()))
    source.plant(
        "needs choices", ("needs_choices",),
        lambda n: with_choices(one := new(), rng, f"{one.text} Which of these is nearest to it?"),
    )  # fmt: skip
    source.plant(
        "even or odd", ("not_removable",),
        lambda n: published(
            f"{(one := new()).text} It is (A) odd (B) even (C) neither", f"So \\boxed{{{'BA'[one.answer % 2]}}}."
        ),
    )  # fmt: skip
    source.plant("choices", (), lambda n: with_choices(new(), rng))
    source.plant(
        "wrong gold", ATTEMPTS,
        lambda n: published((one := new()).text, f"So it is \\boxed{{{one.answer + 3}}}."),
    )  # fmt: skip
    return source


def open_source(rl: list[Shelf], held_out: list[Shelf], rng: random.Random) -> Source:
    """Rows without an answer, some without a solution; copies of held-out rows and of rows kept for RL among them."""
    source = Source("open", rng)
    hint = "Count on from the first number."
    for _ in range(NUM_OPEN):
        shelf = draw_shelf(rng)
        start = None if rng.random() < OPEN_UNSOLVABLE else shelf.start
        source.rows.append(published(Shelf(shelf.place, shelf.things, start, shelf.lines).text, hint))
    kept = rng.sample(rl, NUM_PLANTED)
    source.plant("held-out copy", COPIES, lambda n: published(edited(held_out[n].text, rng), hint))
    source.plant("copy of RL", COPIES, lambda n: published(edited(kept[n].text, rng), hint))
    return source


def unsolvable_source(rng: random.Random) -> Source:
    """Problems that have no solution, with an answer all the same: that of a reader who begins with 10."""
    source = Source("unsolvable", rng)

    def make(number: int) -> Row:
        drawn = draw_shelf(rng)
        shelf = Shelf(drawn.place, drawn.things, None, drawn.lines)
        return {"question": shelf.text, "answer": str(shelf.answer), "solvable": False}

    source.plant("unsolvable", (*ATTEMPTS, "too_easy", "planted_unsolvable"), make)
    return source


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Moves, places, things, numbers and the words of the form are a token each."""
    moves = [move(Line(sign, digit)) for sign in (1, -1) for digit in range(1, 10)]
    words = ["user\n", "assistant\n", "A ", " holds ", ". How many ", " does it hold now?", WORDING, ": ", ", "]
    form = ["[ASSESS] ", "[ADVANCE] ", "[OUTPUT] ", "\nNext action: [ADVANCE]\n\n", "\nNext action: [OUTPUT]\n\n"]
    said = ["\\boxed{", UNKNOWN_START, NO_SOLUTION]
    return word_tokenizer([*words, *form, *said, *moves, *PLACES, *THINGS], numbers=[str(n) for n in range(10, 100)])


def real_rows(folder: Path) -> list[Row]:
    """The first rows of MATH's training split."""
    rows = json.loads((folder / "math_train_7474.json").read_text(encoding="utf-8"))[:NUM_REAL]
    return [{"problem": row["problem"], "answer": row["answer"]} for row in rows]


def make(output: Path, seed: int, real: Path | None) -> None:
    """Everything, the same for the same seed."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    held_out = [draw_shelf(rng) for _ in range(NUM_HELD_OUT)]
    shelves = [draw_shelf(rng) for _ in range(NUM_RL)]
    sources = [rl_source(shelves, held_out, rng), open_source(shelves, held_out, rng), unsolvable_source(rng)]
    for source in sources:
        write_rows(output / f"{source.name}.jsonl", source.rows)
    write_rows(output / "held_out.jsonl", [{"question": shelf.text, "answer": str(shelf.answer)} for shelf in held_out])
    if real is not None:
        write_rows(output / "real.jsonl", real_rows(real))
    logging.disable_progress_bar()
    save_model(output / "model", make_tokenizer(), seed)
    planted = {name: one for source in sources for name, one in source.planted.items()}
    part = output / "planted.json.part"
    part.write_text(json.dumps(planted, indent=1) + "\n", encoding="utf-8")
    os.replace(part, output / "planted.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the raw files of the small chain.")
    parser.add_argument("--output", type=Path, default=Path("runs/eurus2_cpu/raw"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seeds problems, faults and the model's weights")
    parser.add_argument("--real", type=Path, help="folder with math_train_7474.json")
    options = parser.parse_args()
    make(options.output, options.seed, options.real)


if __name__ == "__main__":
    main()
