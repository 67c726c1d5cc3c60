"""A disk without room is one line that says what to do, not a traceback."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from prime_megatron.cli.worker import run_worker
from prime_megatron.errors import ExitCode, RunError
from prime_megatron.metrics.jsonl import JsonlFile

FULL = Path("/dev/full")
"""Every write to it finds no room (Linux)."""


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """A worker handles TERM and quiets libraries for the rest of its process: not for the rest of this suite."""
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        yield
    signal.signal(signal.SIGTERM, before)


def test_a_log_that_cannot_be_written_names_the_file() -> None:
    file = JsonlFile(FULL)
    with pytest.raises(RunError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        file.write("{}\n")
    file.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_rank_that_meets_a_full_disk_says_so_in_one_line(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    def body() -> int:
        raise OSError(number, os.strerror(number), "/data/run/events")

    assert run_worker(body) == ExitCode.FAILED
    line = capsys.readouterr().err
    assert line.startswith(f"error: /data/run/events: {os.strerror(number)}; ") and line.count("\n") == 1


def test_other_errors_of_files_keep_their_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")

    def body() -> int:
        return len(Path("/nowhere/at/all").read_text())

    assert run_worker(body) == ExitCode.FAILED
    assert "Traceback" in capsys.readouterr().err
