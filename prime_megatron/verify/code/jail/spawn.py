"""The zygote and its children, seen from the worker."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPLY_TIMEOUT_S = 30.0
START_TIMEOUT_S = 60.0
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PYTHONHOME")


class ZygoteLost(Exception):
    """The zygote ended, hangs or refuses; nothing is known of the test that ran. Another zygote may do."""


class JailRefused(Exception):
    """The kernel refuses a part of the jail: no zygote can start here."""


@dataclass(frozen=True)
class Child:
    """A confined process. pidfd: readable once it has ended; closed by `Zygote.reap`."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Zygote:
    """Starts a zygote (see zygote.main) and asks it for children.

    Raises:
        JailRefused: the kernel lacks what the jail needs.
        ZygoteLost: it did not start.
    """

    def __init__(self, scratch: str, jail: str, cpu_s: int, memory_bytes: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(START_TIMEOUT_S)
        with theirs:
            arguments = [theirs.fileno(), os.getpid(), scratch, jail, cpu_s, memory_bytes]
            # Same hashes in every zygote: the order of a set must not decide an outcome.
            environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-B", str(Path(__file__).with_name("start.py")), "zygote", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment | {"PYTHONHASHSEED": "0"},
                pass_fds=[theirs.fileno()],
            )
        try:
            answer, _ = self._receive()
        except ZygoteLost:
            self.close()
            raise
        if "failed" in answer:
            self.close()
            raise JailRefused(answer["failed"])
        self._socket.settimeout(REPLY_TIMEOUT_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def spawn(self, mode: str, spec: dict[str, Any], given: list[int]) -> Child:
        """A child with descriptors 0, 1, 2, ... = given, confined when this returns. Raises ZygoteLost."""
        with _in_memory(json.dumps(spec).encode()) as spec_file:
            answer, attached = self._ask({"spawn": mode}, [spec_file, *given])
        if "failed" in answer:
            raise ZygoteLost(f"a child could not be confined: {answer['failed']}")
        return Child(answer["pid"], attached[0])

    def reap(self, child: Child) -> int:
        """Kills what is left of a child; its wait status. Raises ZygoteLost."""
        child.kill()
        os.close(child.pidfd)
        return int(self._ask({"reap": child.pid}, [])[0]["status"])

    def close(self) -> None:
        """Ends the zygote; its children end with it."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _ask(self, request: dict[str, Any], given: list[int]) -> tuple[dict[str, Any], list[int]]:
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], given)
        except OSError as failure:
            raise ZygoteLost(f"cannot speak to it: {failure}") from None
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            packet, attached, _, _ = socket.recv_fds(self._socket, 65_536, 4)
        except OSError as failure:
            raise ZygoteLost(f"no answer from it: {failure}") from None
        if not packet:
            raise ZygoteLost(f"it ended with status {self._process.wait()}")
        return json.loads(packet), attached


@contextlib.contextmanager
def _in_memory(data: bytes) -> Any:
    """A descriptor to read the data from."""
    file = os.memfd_create("spec", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(data)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)
