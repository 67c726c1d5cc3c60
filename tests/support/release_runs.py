"""Runs for another interpreter: `python -m tests.support.release_runs JOBS.json` trains them one after the other.

JOBS.json: a list of [settings, number of ranks, checkpoint to go on from or null]. The last line of standard output is
the release of megatron-core that trained them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.resume_runs import train

ROOT = Path(__file__).parents[2]
Job = tuple[dict[str, Any], int, str | None]


def run_with(python: str, jobs: list[Job], file: Path) -> str:
    """Train jobs with an interpreter; returns its release of megatron-core."""
    file.write_text(json.dumps(jobs))
    command = [python, "-m", "tests.support.release_runs", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=plain_environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def plain_environment() -> dict[str, str]:
    """This one without what names an interpreter's own places."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}


def main() -> int:
    for settings, world_size, resume in json.loads(Path(sys.argv[1]).read_text()):
        assert train(settings, world_size, resume=resume) == {0}
    print(version("megatron-core"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
