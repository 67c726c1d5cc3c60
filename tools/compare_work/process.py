"""A run in a process of its own, forked from one that has imported torch and megatron: a start costs no import."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

PRELOADED = ("prime_megatron.trainer", "tools.compare_work.ceiling")


def run_words(module: str, words: Sequence[str], log: Path, limit_s: float) -> tuple[int, float]:
    """`python -m module words`, its output in a file; returns exit code and processor seconds.

    module: has a function `main` that takes the words and returns the exit code. A run that takes longer than limit_s
    is killed, and its code is that of the signal; so is one whose caller is gone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(module, list(words), str(log), send))
    process.start()
    send.close()
    deadline = time.monotonic() + limit_s
    process.join(limit_s)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    finished = receive.poll() and time.monotonic() < deadline
    try:
        return process.exitcode, float(receive.recv()) if finished else 0.0
    except EOFError:  # it was killed
        return process.exitcode, 0.0


def _run(module: str, words: list[str], log: str, send: Connection) -> None:
    os.setsid()  # so that the run can be ended together with its own processes
    threading.Thread(target=_end_with_caller, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = importlib.import_module(module).main(words)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    send.send(sum(usage.ru_utime + usage.ru_stime for usage in used))
    sys.stdout.flush()
    sys.exit(code)


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)
