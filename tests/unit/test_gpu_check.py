"""tools/gpu_check.py: one line without a GPU; parts that fail or hang are named and the others go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prime_megatron.config.load import load_train_config
from prime_megatron.rollout.recording import read_recording
from tests.support.toy import make_prompts
from tools import gpu_check, replay_task
from tools.gpu_check import Part, last_line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line() -> None:
    command = [sys.executable, str(gpu_check.ROOT / "tools" / "gpu_check.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no GPU here") and done.stderr.count("\n") == 1


def test_every_part_is_told_however_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = ["bash", "-c"]
    parts = [
        Part("good", [*shell, "echo '=== 3 passed ==='"], 20.0, last_line),
        Part("bad", [*shell, "echo no; exit 3"], 20.0, last_line),
        Part("hung", [*shell, "echo begun; sleep 60"], 0.5, last_line),
        Part("after", [*shell, "echo fine"], 20.0, last_line),
    ]
    assert gpu_check.check(parts, tmp_path / "a" / "out.json") == 1
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("good", "ok", "3 passed"),
        ("bad", "failed (3)", "no"),
        ("hung", "longer than 0 s", "begun"),
        ("after", "ok", "fine"),
    ]
    assert [one["name"] for one in json.loads((tmp_path / "a" / "out.json").read_text())] == [row[0] for row in rows]


def test_the_steps_are_configs_that_load(tmp_path: Path) -> None:
    runs = [part for part in gpu_check.parts(tmp_path) if "prime_megatron" in part.command]
    assert {"steps embedded", "replay 1.5B"} <= {part.name for part in runs}
    for part in runs:
        words = [word for word in part.command if "=" in word]
        config = load_train_config(str(gpu_check.ROOT / "examples" / "quickstart" / "prime.yaml"), words)
        assert config.run.steps in (2, 3) and config.models.dtype == "bfloat16" and config.eval.every == 0


def test_the_replayed_steps_train(tmp_path: Path) -> None:
    """The parts of 1.5 billion parameters, at a toy's size on a CPU."""
    size = replay_task.Size(
        hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, vocab=256, prompt=5, shortest=4, longest=9
    )
    replay_task.write_model(tmp_path / "large" / "model", size)
    replay_task.write_recording(tmp_path / "large" / "recording.jsonl", size)
    assert {len(groups) for groups in read_recording(str(tmp_path / "large" / "recording.jsonl")).values()} == {16}
    (tmp_path / "task").mkdir()
    make_prompts(tmp_path / "task" / "train.jsonl")
    (part,) = (part for part in gpu_check.parts(tmp_path) if part.name == "replay 1.5B")
    done = gpu_check.run_part(part)
    assert done.ended == "ok" and done.figure.startswith("step 2/2"), done
