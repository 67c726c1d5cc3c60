"""Feeds and reads a confined child under one deadline: what stands between the worker and a hostile program."""

import os
import select
import time
from dataclasses import dataclass, field

TIME, OUTPUT, SCRATCH = "time", "output", "scratch"
MAX_SCRATCH_FILES = 64
MAX_SCRATCH_BYTES = 64 * 2**20
_LOOK_S = 0.05
"""How often the scratch folder is looked at."""
_DRAIN_S = 1.0
"""For what a child that has ended left in its pipes."""
_CHUNK = 1 << 16


@dataclass
class Feed:
    """Bytes on their way into a pipe, closed behind the last; a reader that stops reading is no error."""

    target: int
    data: memoryview


@dataclass
class Sink:
    """What came out of a pipe: all of it up to `limit_bytes`, or, with `tail`, only its last bytes."""

    source: int
    limit_bytes: int
    tail: bool = False
    data: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0

    def take(self, chunk: bytes) -> bool:
        """False when the limit is passed."""
        self.num_bytes += len(chunk)
        self.data += chunk
        if self.tail:
            del self.data[:-4096]
        return self.num_bytes <= self.limit_bytes


class Watch:
    """One test's descriptors, all closed by `close`."""

    def __init__(self, feeds: list[Feed], sinks: list[Sink], scratch: str) -> None:
        self._poll = select.poll()
        self._feeds = {feed.target: feed for feed in feeds}
        self._sinks = {sink.source: sink for sink in sinks}
        self._scratch = scratch
        for feed in feeds:
            os.set_blocking(feed.target, False)
            self._poll.register(feed.target, select.POLLOUT)
        for sink in sinks:
            os.set_blocking(sink.source, False)
            self._poll.register(sink.source, select.POLLIN)

    def until(self, ended: int, deadline_s: float) -> str | None:
        """Serves the pipes until the child (its pidfd) has ended and they are dry.

        None, or the limit that was passed: TIME (`deadline_s` on the monotonic clock), OUTPUT or SCRATCH.
        """
        self._poll.register(ended, select.POLLIN)
        gone = False
        next_look_s = time.monotonic() + _LOOK_S
        while not gone or self._sinks:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return None if gone else TIME
            if now_s >= next_look_s:
                next_look_s = now_s + _LOOK_S
                if scratch_is_over(self._scratch):
                    return SCRATCH
            for number, _ in self._poll.poll(max(0.0, min(deadline_s, next_look_s) - now_s) * 1000 + 1):
                if number == ended:
                    gone = True
                    deadline_s = min(deadline_s, time.monotonic() + _DRAIN_S)
                    self._poll.unregister(ended)
                elif number in self._feeds:
                    self._feed(self._feeds[number])
                elif not self._drain(self._sinks[number]):
                    return OUTPUT
        return None

    def _feed(self, feed: Feed) -> None:
        try:
            feed.data = feed.data[os.write(feed.target, feed.data[:_CHUNK]) :] if feed.data else feed.data
        except BlockingIOError:
            return
        except OSError:  # the reader is gone
            feed.data = feed.data[:0]
        if not feed.data:
            self._poll.unregister(feed.target)
            os.close(self._feeds.pop(feed.target).target)

    def _drain(self, sink: Sink) -> bool:
        try:
            chunk = os.read(sink.source, _CHUNK)
        except BlockingIOError:
            return True
        if chunk:
            return sink.take(chunk)
        self._poll.unregister(sink.source)
        os.close(self._sinks.pop(sink.source).source)
        return True

    def close(self) -> None:
        for number in [*self._feeds, *self._sinks]:
            os.close(number)
        self._feeds.clear()
        self._sinks.clear()


def scratch_is_over(folder: str) -> bool:
    """Whether the folder holds more files or bytes than a program may leave."""
    num_bytes = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            try:
                num_bytes += entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue
            if count > MAX_SCRATCH_FILES or num_bytes > MAX_SCRATCH_BYTES:
                return True
    return False
