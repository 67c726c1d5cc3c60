"""A function run in a forked child, so that training goes on while it writes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class ForkedCall:
    """Runs ``function`` in a child that sees this process's memory as it is now (copy on write).

    The child may use host memory and files only: no collectives, no GPU.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("fork")
        receive, send = context.Pipe(duplex=False)
        self._outcome: tuple[Any, str | None] | None = None
        self._process = context.Process(target=_run, args=(function, send), daemon=True, name="checkpoint-writer")
        self._process.start()
        send.close()
        # A pipe holds little: without a reader the child would wait for us, and we for its end.
        self._reader = threading.Thread(target=self._read, args=(receive,), daemon=True, name="checkpoint-reader")
        self._reader.start()

    @property
    def done(self) -> bool:
        """Whether the result is here."""
        return not self._reader.is_alive()

    def result(self) -> tuple[Any, str | None]:
        """(result, None) or (None, what went wrong); waits for the child's end."""
        self._reader.join()
        self._process.join()
        assert self._outcome is not None
        return self._outcome

    def _read(self, receive: Connection) -> None:
        try:
            self._outcome = receive.recv()
        except (EOFError, OSError):
            self._outcome = (None, "the writing process died")
        receive.close()


def _run(function: Callable[[], Any], send: Connection) -> None:
    try:
        outcome: tuple[Any, str | None] = (function(), None)
    except Exception as error:  # told to the parent
        outcome = (None, describe(error))
    send.send(outcome)
    send.close()


def describe(error: BaseException) -> str:
    """An error in a few words, its cause included (torch hides a full disk behind a RuntimeError)."""
    cause = error.__cause__ or error.__context__
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    return f"{first} ({describe(cause)})" if cause is not None else first
