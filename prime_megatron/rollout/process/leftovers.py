"""The end of an engine's processes, all at once, with nothing left in /dev/shm: killed processes clean up nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = "/dev/shm/"
UNLINK_TIMEOUT_S = 2.0
"""Of the search for named memory: the kernel makes its reader wait for a process that is stuck in it."""
POLL_S = 0.05


def kill_group(group: int) -> None:
    """SIGKILL to every process of a process group; the caller may be one of them.

    Raises:
        ProcessLookupError: there is no such group.
    """
    try:
        unlinking = threading.Thread(target=unlink_shared_memory, args=(group,), daemon=True)
        unlinking.start()
        unlinking.join(UNLINK_TIMEOUT_S)
    finally:
        os.killpg(group, signal.SIGKILL)


def wait_for_end(group: int, timeout_s: float) -> list[int]:
    """Return when a killed group has ended, its memory free; else, after ``timeout_s``, with those that live on."""
    deadline = time.monotonic() + timeout_s
    while (living := members(group)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return living


def unlink_shared_memory(group: int) -> None:
    """Take the names off the shared memory that a group's processes have mapped; they go on using it.

    To be done before they end: afterwards the names are lost.
    """
    for name in {name for pid in members(group) for name in _mapped(pid)}:
        with suppress(OSError):
            os.unlink(name)


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) is not None:
            state, _, its_group = fields[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(entry.name))
    return sorted(found)


def stat(pid: int) -> list[str] | None:
    """State, parent, group and the rest of /proc/PID/stat; None for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(") ")[2].split() or None


def _mapped(pid: int) -> set[str]:
    """Named shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    fields = [line.split(maxsplit=5) for line in lines]
    return {field[5] for field in fields if len(field) == 6 and field[5].startswith(SHARED_MEMORY)}
