"""What the verbs that only score share: their processes, and the files that they write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from prime_megatron.cli.launch import Rendezvous, start
from prime_megatron.cli.options import check_output_file
from prime_megatron.cli.worker import run_worker
from prime_megatron.config import LaunchConfig, ScoreConfig
from prime_megatron.errors import InputError


def start_scoring(words: list[str], config: ScoreConfig, body: Callable[[], int]) -> int:
    """Run a scoring verb on config.processes processes of this machine; returns the exit code.

    words: the verb's command line, which every process is started with; body: a process's part.
    """
    launch = LaunchConfig(processes_per_node=config.processes)
    command = [sys.executable, "-m", "prime_megatron", *words]
    nowhere = Rendezvous(endpoint=None, node_rank=None, run_id="prime", timeout_s=900)
    return start(command, lambda: run_worker(body), launch, nowhere, stop_signal="USR1")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Whether --output may be written. Raises InputError."""
    check_output_file(path, "--output", overwrite=overwrite)
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}")
