"""Files for the data stages, and a stage run as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prime_megatron.cli.main import main


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curated(name: str, problem: str, truth: str | None = "7", **more: Any) -> dict[str, Any]:
    """A row as `curate read` writes it."""
    row = {
        "id": name, "data_source": "made", "ability": "math", "problem": problem,
        "prompt": [{"role": "user", "content": problem}],
        "reward_model": None if truth is None else {"style": "rule", "ground_truth": truth},
    }  # fmt: skip
    return row | more


class Ran:
    """A stage that was run: exit code, rows kept and dropped, report."""

    def __init__(self, stage: str, inputs: list[Path], output: Path, *words: str) -> None:
        self.code = main(["curate", stage, *map(str, inputs), "--output", str(output), *words])
        self.output = output
        self.paths = [output, Path(f"{output}.dropped.jsonl"), Path(f"{output}.report.json")]
        if self.code == 0:
            self.kept = read_rows(output) if output.suffix == ".jsonl" else []
            self.dropped = read_rows(self.paths[1])
            self.report = json.loads(self.paths[2].read_text(encoding="utf-8"))
            assert self.report["rows_in"] == self.report["kept"] + sum(self.report["dropped"].values())
            assert len(self.dropped) == sum(self.report["dropped"].values())

    def why(self) -> dict[str, str]:
        """Rule by id of the dropped rows."""
        return {row["id"]: row["dropped"]["rule"] for row in self.dropped}
