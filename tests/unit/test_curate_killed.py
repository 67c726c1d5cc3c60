"""Every stage, killed twice with SIGKILL, goes on with the same command, and its files have the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.answering import Reply, answering
from tests.support.curating import Ran, curated, write_rows
from tests.support.stage_killer import SMALL

ROOT = Path(__file__).parents[2]
FORM = "[ASSESS] a\nNext action: [OUTPUT]\n\n[OUTPUT] \\boxed{7}"
MANY = 3 * SMALL + 20


def reply(text: str, body: dict[str, Any]) -> Reply:
    if "Decision:" in text:
        return "Decision: yes\nReason: a number"
    if "<question>" in text:
        return "<question>What is 3+4?</question>"
    return "<solution>It is \\boxed{7}.</solution>" if "<solution>" in text else FORM


def commands(folder: Path, url: str) -> dict[str, tuple[list[Path], list[str]]]:
    """Stage -> inputs and options."""
    published = [
        {"problem": f"{n} + 1?", "solution": f"\\boxed{{{n + 1}}}" if n % 9 else "none", "source": "s"}
        for n in range(MANY)
    ]
    problems = [f"What is {n // 2 if n % 7 == 1 else n} plus {n % 13}?" for n in range(MANY)]
    many = [curated(f"r{n}", f"Prove it: {text}" if n % 20 == 5 else text) for n, text in enumerate(problems)]
    held = write_rows(folder / "held.jsonl", [{"problem": text} for text in problems[::20]])
    asked = [curated(f"c{n}", "What is 3+4? (A) 6 (B) 7 (C) 8", "B") for n in range(6)]
    raw, rows = write_rows(folder / "raw.jsonl", published), write_rows(folder / "many.jsonl", many)
    model = ["--model", "m", "--endpoint", url, "--workers", "1"]
    choices = write_rows(folder / "asked.jsonl", asked)
    return {
        "read": ([raw], ["--form", "numina", "--workers", "1"]),
        "filter": ([rows], []),
        "dedup": ([rows], []),
        "decontaminate": ([rows], ["--against", str(held)]),
        "choices": ([choices], [*model, "choices.ask.block=2"]),
        "sft": ([choices], [*model, "sft.ask.block=2", "sft.truth=ignore"]),
    }


def test_every_stage_goes_on_after_kill_minus_nine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_megatron.cli.curate_texts.BLOCK", SMALL)
    monkeypatch.setattr("prime_megatron.cli.curate_texts.READ_BLOCK", SMALL)
    with answering(reply) as url:
        stages = commands(tmp_path, url)
        killed = []
        for stage, (inputs, options) in stages.items():
            words = ["curate", stage, *map(str, inputs), "--output", str(tmp_path / f"{stage}.jsonl"), *options]
            killed += [[words, "block"], [words, "output"]]
        command = [sys.executable, "-m", "tests.support.stage_killer", json.dumps(killed)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-2000:]
        for stage, (inputs, options) in stages.items():
            output = tmp_path / f"{stage}.jsonl"
            assert not output.exists() and list((tmp_path / f"{stage}.jsonl.blocks").rglob("block-*.jsonl"))
            again = Ran(stage, inputs, output, *options)
            whole = Ran(stage, inputs, tmp_path / f"{stage}-whole.jsonl", *options)
            assert again.report["kept"] > 0 and (again.dropped or stage in ("choices", "sft"))
            assert [one.read_bytes() for one in again.paths] == [one.read_bytes() for one in whole.paths], stage
            assert list(tmp_path.glob(f".{stage}*")) == [], "no part of a file is left behind"
