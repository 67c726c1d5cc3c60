#!/usr/bin/env python3
r"""Turn GSM8K's rows into prompts: JSON lines with `question` and `answer` ("... #### 42") into the Eurus-2-RL schema.

    python tools/prepare_data.py train.jsonl runs/gsm8k/train.jsonl [--limit 512] [--split train]

The ground truth is what follows "####", without thousands separators. The question is asked with an instruction to put
the answer into \boxed{}, which is what the verifier looks for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INSTRUCTION = "Solve the problem step by step. Put the final number inside \\boxed{}."
MARK = "####"


class BadRow(Exception):
    """One line for the user."""


def convert(row: Any, index: int, split: str) -> dict[str, Any]:
    """A GSM8K row as a prompt row. Raises BadRow."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("question", "answer")):
        raise BadRow("a row needs the texts `question` and `answer`")
    _, found, answer = row["answer"].rpartition(MARK)
    truth = answer.strip().replace(",", "").removeprefix("$")
    if not found or not truth:
        raise BadRow(f"the answer has nothing behind {MARK}")
    return {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": f"{row['question'].strip()}\n\n{INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": split, "index": index},
    }


def read(path: Path, limit: int | None, split: str) -> Iterator[dict[str, Any]]:
    """Prompt rows of a file. Raises BadRow that names file and line."""
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            if limit is not None and index == limit:
                return
            try:
                yield convert(json.loads(line), index, split)
            except (ValueError, BadRow) as error:
                raise BadRow(f"{path}, line {index + 1}: {error}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="GSM8K JSON lines")
    parser.add_argument("target", type=Path, help="JSON lines to write")
    parser.add_argument("--limit", type=int, help="first n rows")
    parser.add_argument("--split", default="train", help="written into extra_info")
    chosen = parser.parse_args()
    try:
        rows = list(read(chosen.source, chosen.limit, chosen.split))
    except (OSError, BadRow) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chosen.target.parent.mkdir(parents=True, exist_ok=True)
    with chosen.target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{chosen.target}: {len(rows)} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
