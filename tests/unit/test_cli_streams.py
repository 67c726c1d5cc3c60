"""A console that goes away: closed pipes, full disks, streams that were closed before the start."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.cli.main import main
from prime_megatron.cli.streams import LastingStream

PROGRAM = [sys.executable, "-m", "prime_megatron"]


def closed_pipe() -> int:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(("broken", "number"), [("pipe", errno.EPIPE), ("full", errno.ENOSPC)])
def test_a_stream_outlasts_its_failure(broken: str, number: int) -> None:
    descriptor = closed_pipe() if broken == "pipe" else os.open("/dev/full", os.O_WRONLY)
    heard: list[OSError] = []
    with os.fdopen(descriptor, "w") as real:
        stream = LastingStream(real, heard.append)
        for _ in range(3):
            print("a line", file=stream, flush=True)
        assert stream.failure is not None and stream.failure.errno == number
        assert [error.errno for error in heard] == [number], "told once"
        assert stream.encoding == real.encoding and not stream.isatty()


@pytest.mark.parametrize("words", [["--help"], ["validate", "--help"], ["plan-step", "--help"]])
def test_a_reader_that_has_seen_enough(words: list[str]) -> None:
    """As `| head -1`: what was asked for is done, and nobody reads of it."""
    writer = closed_pipe()
    done = subprocess.run([*PROGRAM, *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_without_room_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"ability": "exact", "response": "1", "ground_truth": "1"}\n')
    words = ["verify", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--workers", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"
    assert "Traceback" not in done.stderr and (tmp_path / "out.jsonl").read_text().count("\n") == 1


def test_both_streams_gone_or_never_there(tmp_path: Path) -> None:
    """An error keeps its exit code; a file that is opened does not become standard output."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("run: [\n")
    writer = closed_pipe()
    done = subprocess.run([*PROGRAM, "validate", str(bad)], stdout=writer, stderr=writer, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 2
    shell = f"exec {' '.join(PROGRAM)} validate {bad} >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", shell], timeout=60, check=False).returncode == 2


def test_the_streams_are_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert main(["train", "/nowhere.yaml"]) == 2
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().err.startswith("error: /nowhere.yaml")
