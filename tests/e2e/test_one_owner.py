"""Two plain `train`s of one folder: one runs, the other is told who owns it; no row is written twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.resume_runs import toy

ROOT = Path(__file__).parents[2]


def test_two_plain_runs(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(toy(tmp_path, log={"tensorboard": False})))
    output = tmp_path / "straight"
    command = [sys.executable, "-m", "prime_megatron", "train", str(config), "--resume", "auto"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (output / ".prime-megatron-owner").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"belongs to another run: host {os.uname().nodename}, process {first.pid}, since" in second.stderr
        assert first.wait(timeout=200) == 0
    finally:
        first.kill()
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]
    assert not (output / ".prime-megatron-owner").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0 and "all 4 steps are done" in again.stdout
