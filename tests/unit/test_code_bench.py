"""The bench of code rewards, small: every way gives the right outputs, and a flood loses no worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.verify.code.check import refusal

pytestmark = pytest.mark.skipif(
    refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs: no Landlock, or no seccomp"
)
ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "tools/bench.py", "code", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_comparison() -> None:
    figures = bench("--programs", "3", "--tests", "2")
    assert {"subprocess", "public", "jail", "jail_minus_subprocess_ms"} <= figures.keys()


def test_a_flood_with_endless_loops() -> None:
    figures = bench("--flood", "--samples", "40", "--loops", "0.1", "--sample-timeout-s", "1.0")
    assert figures["verdicts"] == {"correct": 36, "time_limit": 4}
    assert figures["same_workers"] is True
