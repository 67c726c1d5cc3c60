"""Standard output and error that may go away: a reader that has seen enough (`| head -1`), a full disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from prime_megatron.errors import ExitCode


class LastingStream:
    """A text stream whose first failure is kept; what is written from then on is dropped.

    Args:
        stream: the real one.
        tell: hears of the failure, once.
    """

    def __init__(self, stream: TextIO, tell: Callable[[OSError], None] = lambda error: None) -> None:
        self._stream, self._tell = stream, tell
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """As a text stream's."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            self._drop()
            self._tell(error)

    def _drop(self) -> None:
        """What is buffered must go somewhere when the interpreter ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting(*, runs: bool) -> Iterator[Callable[[int], int]]:
    """Within the block no write to standard output or error raises. Yields what makes an exit code of a verb's own.

    Args:
        runs: the verb trains; it goes on without a console, and says so on standard error.
    """
    _open_all()
    before = sys.stdout, sys.stderr
    error = LastingStream(sys.stderr)

    def tell(failure: OSError) -> None:
        if runs:
            print(f"warning: standard output: {failure.strerror}; the run goes on without it", file=error, flush=True)

    output = LastingStream(sys.stdout, tell)

    def verdict(code: int) -> int:
        """The verb's code; 1 where its output found no room. A reader that has left wanted no more of it."""
        output.flush()
        failure = output.failure
        if runs or code != ExitCode.DONE or failure is None or failure.errno == errno.EPIPE:
            return code
        print(f"error: standard output: {failure.strerror}", file=error, flush=True)
        return ExitCode.FAILED

    sys.stdout, sys.stderr = output, error
    try:
        yield verdict
    finally:
        output.flush()
        error.flush()
        sys.stdout, sys.stderr = before


def _open_all() -> None:
    """A standard stream that was closed (`>&-`) leaves its number to the next file that is opened: take it first."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
