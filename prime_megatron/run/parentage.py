"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process (SIGKILL) when its parent does, however that ends; Linux only.

    To be called before there are other threads to be waited for, by a process whose parent started it from its main
    thread: the kernel counts the end of that thread as the parent's.

    Args:
        parent: process id of the parent. It may be gone already; then this process ends here.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
