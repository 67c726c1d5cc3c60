"""One worker process, seen from the parent: start, ask with a deadline, kill."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_megatron.errors import RunError

WORKER_FILE = Path(__file__).with_name("worker.py")
# Enough to find the interpreter and its packages. Keys and tokens in our environment are not the worker's business.
_ENVIRONMENT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
)


@dataclass(frozen=True)
class Grader:
    """What a worker process loads.

    name: for messages. arguments: of its file, behind MEMORY_BYTES and PARENT_PID. optional: where it cannot be loaded,
    answers fail, and not the run. file: what the process runs; None: worker.py.
    """

    name: str
    arguments: tuple[str, ...] = ()
    optional: bool = False
    file: Path | None = None


MATH_VERIFY = Grader("the math verifier")


class WorkerTimeout(Exception):
    """No reply within the limit."""


class WorkerDied(Exception):
    """The process ended, or spoke nonsense, instead of replying."""


class WorkerProcess:
    """A spawned process with a pipe in and a pipe out; nothing else is inherited. For one thread at a time.

    The thread that makes it must outlive it: Linux delivers the parent-death signal when that thread ends.
    """

    def __init__(self, memory_bytes: int, grader: Grader = MATH_VERIFY) -> None:
        self._grader = grader
        # -P keeps this folder, with its math.py, off the worker's import path; -B writes no bytecode.
        command = [sys.executable, "-P", "-B", str(grader.file or WORKER_FILE), str(memory_bytes), str(os.getpid())]
        command += grader.arguments
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # a stop signal for the training process's group is none of its business
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> None:
        """Returns when the worker has loaded its grader. Raises RunError when it cannot, WorkerDied."""
        try:
            reply = self._read(timeout_s)
        except WorkerTimeout:
            raise RunError(f"{self._grader.name} did not start within {timeout_s:g} s") from None
        if not reply["ready"]:
            raise RunError(f"{self._grader.name} cannot start: {reply['reason']}")

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one reply. Raises WorkerTimeout or WorkerDied; after either the process is of no more use."""
        assert self._process.stdin is not None
        view = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while view:  # unbuffered: a write may be partial
                view = view[self._process.stdin.write(view) :]
        except (OSError, ValueError) as failure:
            raise WorkerDied(f"cannot write to it: {failure}") from None
        return self._read(timeout_s)

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        poll = select.poll()  # not select(): a training process may own more than 1024 descriptors
        poll.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise WorkerTimeout
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerDied(f"exit status {self._process.wait()}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise WorkerDied("its reply is not a JSON object")
        return reply

    def kill(self) -> None:
        """SIGKILL; safe from another thread, and on a process that has ended."""
        self._process.kill()

    def discard(self) -> None:
        """Kills, reaps and closes the pipes. Only from the thread that uses the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
