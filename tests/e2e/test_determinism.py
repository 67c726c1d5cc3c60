"""The same config and seed twice: the same metrics and samples to the last bit, timings aside; another seed differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.runs import TIMINGS, read_lines, run
from tests.support.toy import make_model, make_prompts, merge, settings


def facts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows]


def test_same_seed_same_bits(tmp_path: Path) -> None:
    model, prompts = make_model(tmp_path / "model"), make_prompts(tmp_path / "prompts.jsonl")
    done = {}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        over = {"run": {"output_dir": str(tmp_path / name), "seed": seed}, "data": {"eval": [prompts]}}
        config = merge(settings(model, prompts, tmp_path), {**over, "parallel": {"pipeline": 2}})
        done[name] = (facts(run(config, 2)), read_lines(config, "samples.jsonl"))
    assert done["one"] == done["two"]
    assert {row["step"] for row in done["one"][1]} == {0, 1, 2, 3}  # 0: the held-out answers before the first step
    assert done["one"][1] != done["other"][1]
