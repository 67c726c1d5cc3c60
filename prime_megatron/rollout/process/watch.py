"""A thread in the engine process that ends it, and all of the engine's processes, when the trainer or one of them is
gone: what is left of an engine would wait for the missing one for ever."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from prime_megatron.rollout.process.leftovers import kill_group, stat

WATCH_EVERY_S = 0.2
START_TIME = 19
"""Its place in what `leftovers.stat` returns: tells a process from a later one of the same number."""
COMPILERS = "torch/_inductor/compile_worker"
"""In the command line of torch's compiling processes, which come and go."""
NAME_CHARS = 100


class Watch:
    """Watches from now on.

    While the engine starts, processes come and go, and only those of multiprocessing (SGLang's schedulers, vLLM's
    workers) are held to: one that was killed or failed is a death. Once it stands (`stands`), nobody below may end.

    Args:
        parent: the trainer's process id.
        tell: hears why everything ends, just before it does.
    """

    def __init__(self, parent: int, tell: Callable[[str], None]) -> None:
        self._parent, self._tell = parent, tell
        self._started: set[BaseProcess] = set()
        self._below: dict[int, tuple[str, str]] = {}
        """Process id -> start time and name."""
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def stands(self) -> None:
        """The engine has started: whoever is below this process now must live on."""
        self._below = {pid: seen for pid in _descendants(os.getpid()) if (seen := _seen(pid)) is not None}

    def _watch(self) -> None:
        try:
            while (why := self._why()) is None:
                time.sleep(WATCH_EVERY_S)
            # Neither a full disk nor a trainer that does not read may keep the others alive.
            with suppress(Exception):
                print(f"ending: {why}", flush=True)
            with suppress(Exception):
                self._tell(why)
        except Exception:
            traceback.print_exc()
        finally:
            kill_group(os.getpgrp())

    def _why(self) -> str | None:
        """What is amiss."""
        if os.getppid() != self._parent:
            return "the trainer is gone"
        self._started |= set(multiprocessing.active_children())
        for process in self._started:
            if (code := _exit_code(process)) not in (None, 0):
                return f"{process.name}, a process of the engine, ended (exit code {code})"
        for pid, (start, name) in self._below.items():
            fields = stat(pid)
            if fields is None or fields[0] in "ZX" or fields[START_TIME] != start:
                return f"process {pid} of the engine ({name}) ended"
        return None


def _exit_code(process: BaseProcess) -> int | None:
    try:
        return process.exitcode
    except ValueError:  # its owner has closed it, after its end
        return None


def _seen(pid: int) -> tuple[str, str] | None:
    """Start time and name of a process that is to be watched."""
    fields = stat(pid)
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    if fields is None or fields[0] in "ZX" or any(COMPILERS in word for word in words):
        return None
    return fields[START_TIME], " ".join(word for word in words if word)[:NAME_CHARS]


def _descendants(root: int) -> Iterator[int]:
    """Processes below a process, as /proc tells."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        yield from below
        pending += below
