"""Rows a second and peak memory of `prime-megatron curate filter` and `dedup` on made rows.

The rows, made from a seed: word problems of 20 to 60 words from a vocabulary of 4,000 with numbers in them, each with a
boxed solution; one in fifty is a copy of an earlier one with a word and the case changed, one in a hundred asks for a
proof. Each stage is a process of its own, as a user starts it; its time is from start to end, imports and both passes
over the file included, its memory the most that was resident.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_LETTERS = "bcdfghklmnprstvw"
_VOWELS = "aeiou"
_KEPT = 2000
"""Earlier problems of which copies are made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="prime-curate-") as folder:
        made = Path(folder) / "made.jsonl"
        planted = make_rows(made, arguments.rows, arguments.seed)
        filtered = _stage("filter", made, Path(folder) / "filtered.jsonl")
        unique = _stage("dedup", Path(folder) / "filtered.jsonl", Path(folder) / "unique.jsonl")
    return {
        "bench": "curate", "rows": arguments.rows, "bytes_per_row": planted.pop("bytes") / arguments.rows,
        "planted": planted, "filter": filtered, "dedup": unique,
    }  # fmt: skip


def make_rows(path: Path, count: int, seed: int) -> dict[str, int]:
    """Writes the rows; returns how many copies and proofs are among them."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choice(_LETTERS) + draw.choice(_VOWELS) for _ in range(draw.randint(1, 4))) for _ in range(4000)
    ]
    kept: list[tuple[list[str], int]] = []
    planted = {"copies": 0, "proofs": 0, "bytes": 0}
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if kept and number % 50 == 7:
                text, truth = kept[draw.randrange(len(kept))]
                place = draw.choice([place for place, word in enumerate(text) if word.isalpha()])
                problem = " ".join([*text[:place], draw.choice(words), *text[place + 1 :]]).upper()
                planted["copies"] += 1
            else:
                text = [
                    str(draw.randint(2, 999)) if draw.random() < 0.1 else draw.choice(words)
                    for _ in range(draw.randint(20, 60))
                ]
                truth = draw.randint(1, 10**6)
                problem = " ".join(text).capitalize() + "?"
                if number % 100 == 3:
                    problem = f"Prove that {problem}"
                    planted["proofs"] += 1
                elif len(kept) < _KEPT:
                    kept.append((text, truth))
            row = {
                "id": f"made-{number:07d}", "data_source": "made", "ability": "math", "problem": problem,
                "prompt": [{"role": "user", "content": problem}],
                "reward_model": {"style": "rule", "ground_truth": str(truth)},
                "solution": f"{problem} It is \\boxed{{{truth}}}.",
            }  # fmt: skip
            planted["bytes"] += file.write(json.dumps(row) + "\n")
    return planted


def _stage(name: str, source: Path, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "prime_megatron", "curate", name, str(source), "--output", str(output)]
    start_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start_s
    if status:
        raise SystemExit(f"bench: curate {name} failed")
    report = json.loads(Path(f"{output}.report.json").read_text())
    return {
        "rows_in": report["rows_in"], "dropped": report["dropped"], "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "rows_per_s": round(report["rows_in"] / seconds),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }  # fmt: skip
