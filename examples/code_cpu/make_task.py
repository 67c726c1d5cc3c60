#!/usr/bin/env python3
"""Make a task of programs and worksheets: data, and a small untrained Qwen2 with a tokenizer of its own.

    python examples/code_cpu/make_task.py [--output runs/code_cpu_task] [--seed 0]

Half of the prompts are the quick start's worksheets (ability math). The others (ability code) ask for a function, a
line for each thing that it does; the answer is a Python program, which is run against tests:

    Write f(x):                ```python
    x                          def f(x):
    add 4                          x = x + 4
    subtract 8                     x = x - 8
    cap at 3                       x = min(x, 3)
                                   return x
                               ```

The programs that the model learns from first are a hurried pupil's: where 7 or more is to be subtracted, they add it in
most cases. A model that has learnt them well repeats them; reinforcement learning against the tests finds the right
line. A cap hides what came before it from some tests: such a program passes a part of them.

Writes train.jsonl and eval.jsonl (Eurus-2-RL schema), sft.jsonl (messages) and model/ (Hugging Face format).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quickstart import make_task as worksheets

NUM_TRAIN, NUM_EVAL, NUM_SFT = 4096, 128, 8192
"""Of each ability."""
NUM_LINES = 10
NUM_TESTS = 4
HARD_DIGIT, WRONG_SIGN = 7, 0.55
CAP = 0.08
"""Share of the lines that are caps."""

INSTRUCTION = "Write f(x):\n"
OPENING = ("```python\n", "def f(x):\n")
CLOSING = "    return x\n```"
WORDS = {"+": "add ", "-": "subtract ", "min": "cap at "}
CODE = {"+": "    x = x + ", "-": "    x = x - ", "min": "    x = min(x, "}
PHRASES = (INSTRUCTION, *OPENING, CLOSING, *WORDS.values(), *CODE.values(), ")\n")


@dataclass(frozen=True)
class Step:
    """One line: what is done to x."""

    operation: str
    digit: int

    def apply(self, x: int) -> int:
        if self.operation == "min":
            return min(x, self.digit)
        return x + self.digit if self.operation == "+" else x - self.digit

    @property
    def asked(self) -> str:
        return f"{WORDS[self.operation]}{self.digit}\n"

    def written(self, operation: str) -> str:
        return f"{CODE[operation]}{self.digit}" + (")\n" if operation == "min" else "\n")


@dataclass(frozen=True)
class Function:
    """A function to write, with the inputs that it is tested on."""

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return INSTRUCTION + "x\n" + "".join(step.asked for step in self.steps)

    def value(self, x: int) -> int:
        for step in self.steps:
            x = step.apply(x)
        return x

    @property
    def ground_truth(self) -> str:
        """Eurus-2's form: calls of f and their results."""
        tests = {"inputs": [[x] for x in self.inputs], "outputs": [self.value(x) for x in self.inputs], "fn_name": "f"}
        return json.dumps(tests)

    def program(self, rng: random.Random | None) -> str:
        """The right program, or with a generator the pupil's."""
        lines = [step.written(slip(step, rng)) for step in self.steps]
        return "".join([*OPENING, *lines, CLOSING])


def slip(step: Step, rng: random.Random | None) -> str:
    """The operation that the pupil writes."""
    if rng is None or step.operation != "-" or step.digit < HARD_DIGIT:
        return step.operation
    return "+" if rng.random() < WRONG_SIGN else "-"


def distinct_functions(rng: random.Random) -> Iterator[Function]:
    """Functions without end, none twice."""
    seen: set[tuple[Step, ...]] = set()
    while True:
        steps = tuple(
            Step("min" if rng.random() < CAP else rng.choice("+-"), rng.randint(1, 9)) for _ in range(NUM_LINES)
        )
        if steps not in seen:
            seen.add(steps)
            yield Function(steps, tuple(rng.sample(range(-20, 21), NUM_TESTS)))


def rl_row(function: Function, split: str, index: int) -> dict[str, object]:
    """A prompt and its tests in the schema of Eurus-2-RL-Data."""
    return {
        "data_source": "functions",
        "prompt": [{"role": "user", "content": function.prompt}],
        "ability": "code",
        "reward_model": {"style": "rule", "ground_truth": function.ground_truth},
        "extra_info": {"split": split, "index": index},
    }


def sft_row(function: Function, rng: random.Random) -> dict[str, object]:
    """A chat with the pupil's program."""
    return {
        "messages": [
            {"role": "user", "content": function.prompt},
            {"role": "assistant", "content": function.program(rng)},
        ]
    }


def make(output: Path, seed: int) -> None:
    """Everything, the same for the same seed; nothing is in two files, and the abilities take turns."""
    output.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    functions, sheets = distinct_functions(rng), worksheets.distinct_worksheets(rng)
    for name, split, count in (("eval", "test", NUM_EVAL), ("train", "train", NUM_TRAIN)):
        rows = []
        for index in range(count):
            rows += [rl_row(next(functions), split, index), worksheets.rl_row(next(sheets), split, index)]
        worksheets.write_rows(output / f"{name}.jsonl", rows)
    rows = []
    for _ in range(NUM_SFT):
        rows += [sft_row(next(functions), rng), worksheets.sft_row(next(sheets), rng)]
    worksheets.write_rows(output / "sft.jsonl", rows)
    worksheets.logging.disable_progress_bar()
    worksheets.save_model(output / "model", worksheets.make_tokenizer(PHRASES), seed)
    print(f"{output / 'model'}: an untrained Qwen2, {worksheets.VOCAB_SIZE} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a task of programs and worksheets, and an untrained model.")
    parser.add_argument("--output", type=Path, default=Path("runs/code_cpu_task"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seeds prompts, slips and the model's weights")
    options = parser.parse_args()
    make(options.output, options.seed)


if __name__ == "__main__":
    main()
