"""tools/prepare_data.py: GSM8K's rows become prompts that the reader takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.data.rows import read_prompt_rows

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_prompts(tmp_path: Path) -> None:
    rows = [{"question": f" How many? {n} ", "answer": f"1 + 1 = <<1+1=2>>2\n#### {n}"} for n in ("2", "$1,200", "-3")]
    target = tmp_path / "out" / "train.jsonl"
    done = run(write(tmp_path / "gsm8k.jsonl", *rows), target)
    assert done.returncode == 0, done.stderr
    made = read_prompt_rows([str(target)])
    assert [row.ground_truth for row in made] == ["2", "1200", "-3"]
    assert {row.ability for row in made} == {"math"}
    assert made[0].messages[-1].content.startswith("How many? 2\n\n")
    assert "\\boxed{}" in made[0].messages[-1].content


def test_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *[{"question": "q", "answer": "#### 1"}] * 5)
    assert "2 prompts" in run(source, tmp_path / "b.jsonl", "--limit", 2).stdout


def test_short_problems_after_solved_ones(tmp_path: Path) -> None:
    rows = [
        {"question": "Long? " * 30, "answer": "<<1=1>>1\n#### 1"},
        {"question": "Two?", "answer": "First 1+1=<<1+1=2>>2.\nThen 2*1,000=<<2*1000=2000>>2000\n#### 2,000"},
        {"question": "Three?", "answer": "<<1=1>>1 <<2=2>>2 <<3=3>>3\n#### 3"},
        {"question": "None?", "answer": "So.\n#### 0"},
        {"question": "One?", "answer": "1+2=<<1+2=3>>3\n#### 3"},
    ]
    target = tmp_path / "short.jsonl"
    limits = ("--max-steps", 2, "--max-chars", 40, "--shots", 1)
    done = run(write(tmp_path / "gsm8k.jsonl", *rows), target, *limits)
    assert done.returncode == 0, done.stderr
    (made,) = read_prompt_rows([str(target)])
    assert [message.role for message in made.messages] == ["user", "assistant", "user"]
    assert made.messages[0].content.startswith("One?\n\n")
    assert made.messages[1].content == "1+2=3\nThe answer is \\boxed{3}."
    assert made.messages[2].content.startswith("Two?\n\n")
    assert made.ground_truth == "2000"
    done = run(tmp_path / "gsm8k.jsonl", target, *limits[:-1], 2)
    assert done.returncode == 2
    assert "2 rows are left, too few for 2 shots and a prompt" in done.stderr


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"question": "q"}, "`answer`"), ({"question": "q", "answer": "no mark"}, "####"), ([], "`question`")],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, reason: str) -> None:
    source = write(tmp_path / "a.jsonl", {"question": "q", "answer": "#### 1"}, row)
    done = run(source, tmp_path / "b.jsonl")
    assert done.returncode == 2
    assert "a.jsonl, line 2" in done.stderr and reason in done.stderr
    assert not (tmp_path / "b.jsonl").exists()
