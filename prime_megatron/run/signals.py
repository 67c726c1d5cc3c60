"""Stop signals, heard at any moment: a thread reacts, whatever the main thread waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What may ask a run to stop, before its config is read: TERM, and either choice of checkpoint.signal."""
_OVER = b"\0"
"""No signal has this number: tells the thread to end."""


@contextmanager
def heard(numbers: Collection[signal.Signals], react: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within the block, call ``react`` with every such signal as soon as it comes; from the main thread.

    A Python handler runs only when the main thread is back in Python, which may be minutes away (a rendezvous, a
    collective): a thread of its own hears the signal at once. Blocks nest: the inner one is told alone. A forked child
    is told nothing, and does not end from these signals either.

    Args:
        numbers: the signals.
        react: sets a flag, sends signals, or ends the process; is called from both threads, so once or twice a signal.
    """
    process = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            react(signal.Signals(number))

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_listen, args=(reader, frozenset(numbers), react), daemon=True, name="signals")
    thread.start()
    outer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        # In this order: a signal in between is heard by the outer block.
        signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writer, _OVER)
        thread.join()
        os.close(reader)
        os.close(writer)


def _listen(reader: int, numbers: frozenset[signal.Signals], react: Callable[[signal.Signals], None]) -> None:
    while True:
        for byte in os.read(reader, 64):
            if byte == _OVER[0]:
                return
            if byte in numbers:
                react(signal.Signals(byte))


def _forked() -> None:
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forked)
