"""The other ranks of this node, as the kernel sees them."""

from __future__ import annotations

import psutil


def stopped_ranks() -> str:
    """Names the ranks of this node that a signal has stopped, as the end of a line; empty: none."""
    parent = psutil.Process().parent()
    found = []
    for process in [] if parent is None else parent.children():
        try:
            if process.status() == psutil.STATUS_STOPPED:
                found.append(f"; rank {process.environ()['RANK']} (process {process.pid}) is stopped by a signal")
        except (psutil.Error, KeyError):
            continue
    return "".join(found)
