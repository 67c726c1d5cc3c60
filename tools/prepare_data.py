#!/usr/bin/env python3
r"""Turn GSM8K's rows into prompts: JSON lines with `question` and `answer` ("... #### 42") into the Eurus-2-RL schema.

    python tools/prepare_data.py train.jsonl runs/gsm8k/train.jsonl [--limit 512] [--split train]
    python tools/prepare_data.py train.jsonl runs/gsm8k/short.jsonl --max-steps 2 --max-chars 140 --shots 2

The ground truth is what follows "####", without thousands separators. The question is asked with an instruction to put
the answer into \boxed{}, which is what the verifier looks for. For a small model: only rows with a short question and
few calculations ("<<4*5=20>>" marks one), and solved rows before every question, as earlier turns of the chat.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTRUCTION = "Solve the problem step by step. Put the final number inside \\boxed{}."
MARK = "####"
CALCULATION = re.compile(r"<<.*?>>")


class BadRow(Exception):
    """One line for the user."""


FIRST = b'{"data_source": "gsm8k", '
"""How a file of this tool's begins."""


@dataclass(frozen=True)
class Problem:
    """A row of GSM8K."""

    index: int
    """Its line, from 0."""
    question: str
    solution: str
    """Without the marks of calculations and without the answer."""
    answer: str
    num_steps: int
    """Marked calculations."""

    def ask(self) -> dict[str, str]:
        """The user's turn."""
        return {"role": "user", "content": f"{self.question}\n\n{INSTRUCTION}"}

    def solve(self) -> dict[str, str]:
        """The assistant's turn that INSTRUCTION asks for."""
        return {"role": "assistant", "content": f"{self.solution}\nThe answer is \\boxed{{{self.answer}}}."}


def parse(row: Any, index: int) -> Problem:
    """A GSM8K row. Raises BadRow."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "answer")):
        raise BadRow("a row needs the texts `question` and `answer`")
    solution, found, answer = row["answer"].rpartition(MARK)
    truth = answer.strip().replace(",", "").removeprefix("$")
    if not found or not truth:
        raise BadRow(f"the answer has nothing behind {MARK}")
    marks = len(CALCULATION.findall(solution))
    return Problem(index, row["question"].strip(), CALCULATION.sub("", solution).strip(), truth, marks)


def prompt_row(problem: Problem, shots: list[Problem], split: str) -> dict[str, Any]:
    """A problem as a prompt row, after the solved ones."""
    solved = [turn for shot in shots for turn in (shot.ask(), shot.solve())]
    return {
        "data_source": "gsm8k",
        "prompt": [*solved, problem.ask()],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": split, "index": problem.index},
    }


def may_write(target: Path) -> bool:
    """Whether nothing is there, or a file that this tool wrote."""
    if not os.path.lexists(target):
        return True
    if target.is_symlink() or not target.is_file():
        return False
    with target.open("rb") as file:
        return file.read(len(FIRST)) in (b"", FIRST)


def read(path: Path) -> Iterator[Problem]:
    """The problems of a file. Raises BadRow that names file and line."""
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            try:
                yield parse(json.loads(line), index)
            except (ValueError, BadRow) as error:
                raise BadRow(f"{path}, line {index + 1}: {error}") from None


def choose(problems: Iterator[Problem], chosen: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """The problems to ask, and those to show solved: the shortest with a marked calculation. Raises BadRow."""
    kept = [
        problem
        for problem in problems
        if (chosen.max_steps is None or 1 <= problem.num_steps <= chosen.max_steps)
        and (chosen.max_chars is None or len(problem.question) <= chosen.max_chars)
    ]
    marked = [problem for problem in kept if problem.num_steps]
    shots = sorted(marked, key=lambda problem: len(problem.question) + len(problem.solution))[: chosen.shots]
    asked = [problem for problem in kept if problem not in shots][: chosen.limit]
    if len(shots) < chosen.shots or not asked:
        raise BadRow(f"{chosen.source}: {len(kept)} rows are left, too few for {chosen.shots} shots and a prompt")
    return asked, shots


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", type=Path, help="GSM8K JSON lines")
    parser.add_argument("target", type=Path, help="JSON lines to write")
    parser.add_argument("--limit", type=int, help="first n of the rows that are left")
    parser.add_argument("--max-steps", type=int, help="only rows with 1 to n marked calculations")
    parser.add_argument("--max-chars", type=int, help="only questions of at most n characters")
    parser.add_argument("--shots", type=int, default=0, help="solved rows before every question")
    parser.add_argument("--split", default="train", help="written into extra_info")
    chosen = parser.parse_args()
    try:
        problems, shots = choose(read(chosen.source), chosen)
        rows = [prompt_row(problem, shots, chosen.split) for problem in problems]
    except (OSError, BadRow) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not may_write(chosen.target):
        print(f"error: {chosen.target}: exists and was not written by this tool; name another file", file=sys.stderr)
        return 2
    chosen.target.parent.mkdir(parents=True, exist_ok=True)
    with chosen.target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{chosen.target}: {len(rows)} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
