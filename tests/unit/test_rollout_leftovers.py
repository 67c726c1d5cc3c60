"""The end of an engine's processes: all of a group, and the shared memory that they have mapped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.rollout.process.leftovers import kill_group, members, wait_for_end

HOLDER = """
import mmap, os, subprocess, sys, time
files = [open(path, "r+b") for path in sys.argv[2:]]
maps = [mmap.mmap(file.fileno(), 0) for file in files]
if sys.argv[1] == "parent":
    subprocess.Popen([sys.executable, __file__, "child", *sys.argv[2:3]])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory by name here")
def test_all_processes_end_and_their_shared_memory_alone_is_removed(tmp_path: Path) -> None:
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    names = [Path(f"/dev/shm/prime-test-{os.getpid()}-{place}") for place in range(3)]
    elsewhere = tmp_path / "weights"
    for path in (*names, elsewhere):
        path.write_bytes(b"x" * 4096)
    try:
        command = [sys.executable, str(script), "parent", *map(str, names[:2]), str(elsewhere)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        assert len(members(process.pid)) == 2
        os.kill(process.pid, signal.SIGSTOP)  # a hung process is no obstacle
        kill_group(process.pid)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert process.stdout.read() == ""  # its child has closed the pipe too
        assert wait_for_end(process.pid, timeout_s=60.0) == []
        assert [path.exists() for path in (*names, elsewhere)] == [False, False, True, True]
    finally:
        for path in names:
            path.unlink(missing_ok=True)
