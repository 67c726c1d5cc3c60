"""Spans of time on one rank, written as a Chrome trace; the traces of all ranks joined into one file.

The format is that of Chrome's "Trace Event Format", which Perfetto reads: an object with a list of events, complete
ones ("ph": "X") with beginning and duration in microseconds, pid = rank, tid = thread. There is one event a line, so
that files are joined without being parsed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRACE_FILE = "trace.json"
"""All ranks."""
_HEAD, _FOOT = '{"displayTimeUnit": "ms", "traceEvents": [\n', "\n]}\n"


class Spans:
    """What one rank did when. Spans of one thread lie beside or within each other.

    Args:
        rank: of this process in the world.
        label: what a viewer calls it.
        zero_s: what the clock of `add` showed at the trace's time 0.
    """

    def __init__(self, rank: int, label: str, zero_s: float) -> None:
        self._rank = rank
        self._label = label
        self._zero_s = zero_s
        self._events: list[tuple[str, str, float, float, str]] = []

    def add(self, name: str, category: str, begin_s: float, end_s: float) -> None:
        """A span of the calling thread, in seconds of one clock. Any thread may call."""
        self._events.append((name, category, begin_s, end_s, threading.current_thread().name))

    def write(self, folder: Path) -> None:
        """Write the rank's file. Raises OSError."""
        threads: dict[str, int] = {"MainThread": 0}
        events: list[dict[str, Any]] = []
        for name, category, begin_s, end_s, thread in sorted(self._events, key=lambda event: event[2]):
            events.append({
                "name": name, "cat": category, "ph": "X", "pid": self._rank,
                "tid": threads.setdefault(thread, len(threads)),
                "ts": round((begin_s - self._zero_s) * 1e6, 3), "dur": round((end_s - begin_s) * 1e6, 3),
            })  # fmt: skip
        named = [("process_name", 0, {"name": self._label}), ("process_sort_index", 0, {"sort_index": self._rank})]
        named += [("thread_name", index, {"name": thread}) for thread, index in threads.items()]
        about = [{"name": n, "ph": "M", "pid": self._rank, "tid": tid, "args": args} for n, tid, args in named]
        text = _HEAD + ",\n".join(json.dumps(event) for event in about + events) + _FOOT
        _write(rank_file(folder, self._rank), [text])


def rank_file(folder: Path, rank: int) -> Path:
    """Where a rank's trace lies."""
    return folder / f"rank-{rank:05d}.json"


def join_ranks(folder: Path, world: int) -> list[int]:
    """Join the ranks' files into one; returns the ranks that have none. Raises OSError."""
    there = [rank for rank in range(world) if rank_file(folder, rank).exists()]
    _write(folder / TRACE_FILE, _joined([rank_file(folder, rank) for rank in there]))
    return [rank for rank in range(world) if rank not in there]


def _joined(paths: list[Path]) -> Iterator[str]:
    yield _HEAD
    for index, path in enumerate(paths):
        with path.open(encoding="utf-8") as file:
            next(file)
            previous = ",\n" * (index > 0)
            for line in file:
                if line.startswith("]"):
                    break
                yield previous
                previous = line
            yield previous.rstrip("\n")
    yield _FOOT


def _write(path: Path, parts: list[str] | Iterator[str]) -> None:
    """In one move, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(parts)
    os.replace(temporary, path)
