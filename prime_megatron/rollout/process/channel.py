"""Messages between the trainer and its engine process: one JSON object a line over a socket pair.

Weights never pass here: they live in shared memory or files, and only their places are told.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from typing import Any

CHUNK_BYTES = 1 << 20


class Channel:
    """One end of the line. Any thread may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._buffer = bytearray()

    def send(self, message: dict[str, Any], timeout_s: float | None = None) -> None:
        """Send a message.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: it has not read the message within ``timeout_s``; the line is of no use any more.
        """
        if not self._sending.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError("another message is on its way")
        try:
            self._sock.settimeout(timeout_s)
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError(str(error)) from error
        finally:
            self._sock.settimeout(None)
            self._sending.release()

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None after ``timeout_s`` without one. Raises EOFError when the other side is gone."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._sock], [], [], left)[0]:
                return None
            try:
                data = self._sock.recv(CHUNK_BYTES)
            except OSError as error:
                raise EOFError(str(error)) from error
            if not data:
                raise EOFError("the other side closed the line")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close this end; the other side reads the end of the file."""
        self._sock.close()
