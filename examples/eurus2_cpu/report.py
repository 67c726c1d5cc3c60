#!/usr/bin/env python3
"""What came of the small chain: rows by stage, what was planted and found, the models on the held-out set.

    python examples/eurus2_cpu/report.py runs/eurus2_cpu

Ends with exit code 1 where a planted row came through, a count does not add up, or a model is not above the one before
it beyond the intervals: supervised above the start, PRIME above supervised.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = ("start", "sft", "rloo", "prime")
ABOVE = (("sft", "start"), ("prime", "sft"))
SET = "held_out"


def stages(data: Path) -> tuple[Table, list[str]]:
    """Rows in, kept and dropped by rule, in the order in which the stages ran; what does not add up."""
    table, wrong = Table("stage", "output", "rows in", "kept", "dropped"), []
    for path in sorted(data.glob("*.report.json"), key=lambda path: path.stat().st_mtime_ns):
        report, name = json.loads(path.read_text(encoding="utf-8")), path.name.removesuffix(".report.json")
        lines = {
            file: len((data / file).read_text(encoding="utf-8").splitlines())
            for file in (name, f"{name}.dropped.jsonl")
        }
        told = [report["kept"], sum(report["dropped"].values())]
        if list(lines.values()) != told or report["rows_in"] != sum(told):
            wrong.append(f"{name}: {report['rows_in']} rows in, {lines}")
        dropped = ", ".join(f"{rule} {count}" for rule, count in report["dropped"].items())
        table.add_row(report["stage"], name, str(report["rows_in"]), str(report["kept"]), dropped)
    return table, wrong


def planted(raw: Path, data: Path) -> tuple[Table, list[str]]:
    """Of each kind what was planted and what found it; the rows that came through. Rows without a rule must stay."""
    rules: dict[str, list[str]] = {}
    for path in data.glob("*.dropped.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rules.setdefault(row["id"], []).append(row["dropped"]["rule"])
    found: dict[str, Counter[str]] = {}
    wrong = []
    for name, one in json.loads((raw / "planted.json").read_text(encoding="utf-8")).items():
        (rule,) = rules.get(name, ["none"])
        found.setdefault(f"{name.rpartition('-')[0]}: {one['kind']}", Counter())[rule] += 1
        if one["rules"] and rule not in one["rules"]:
            wrong.append(f"{name}: {one['kind']}, and {rule} found it")
    table = Table("planted", "rows", "found by")
    for kind, counts in found.items():
        table.add_row(kind, str(counts.total()), ", ".join(f"{rule} {count}" for rule, count in counts.items()))
    return table, wrong


def models(folder: Path) -> tuple[Table, list[str]]:
    """Accuracy with its interval; the models that are not above the one before them."""
    table, wrong = Table("model", "right", "95 %", "pass@4"), []
    found: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        found[name] = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["sets"][SET]
        accuracy = found[name]["accuracy"]
        table.add_row(
            name, f"{accuracy['value']:.1%}", f"{accuracy['low']:.1%} to {accuracy['high']:.1%}",
            f"{found[name]['pass_at']['4']:.1%}",
        )  # fmt: skip
    for better, before in ABOVE:
        if found[better]["accuracy"]["low"] <= found[before]["accuracy"]["high"]:
            wrong.append(f"{better} is not above {before} beyond the intervals")
    return table, wrong


def main() -> int:
    run = Path(sys.argv[1])
    parts = (stages(run / "data"), planted(run / "raw", run / "data"), models(run / "eval"))
    console = Console(width=120)
    for table, _ in parts:
        console.print(table)
    wrong = [line for _, lines in parts for line in lines]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
