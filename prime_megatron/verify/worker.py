r"""The process that runs a grader: one JSON request a line on stdin, one JSON reply a line on stdout.

Started as a file by ``process.WorkerProcess`` with `MEMORY_BYTES PARENT_PID` for math-verify, and `KEY PATH` after them
for the reward function that a config names (``verify.custom``). Imports no torch. It ends when its parent does, holds
no more than its memory limit, and can write into no file; it can start no process either, unless it runs as root, whom
that limit does not bind. It keeps no time: the parent kills it.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1
_REASON_CHARS = 200


def confine(memory_bytes: int, parent_pid: int) -> None:
    """Dies with the parent; bounded memory, no file writes, no core dump, no children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))


def own_stdio() -> tuple[int, int]:
    """Private copies of stdin and stdout; fd 0 and 1 become /dev/null, so that no library can speak on the pipe."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return requests, replies


class Grader(Protocol):
    """What a worker holds."""

    def grade(self, request: Mapping[str, Any]) -> tuple[float, str, str]:
        """(score, verdict, reason) of one response; raises what it raises."""
        ...


def answer_one(grader: Grader, line: bytes) -> dict[str, object]:
    """The reply to one request; `last` says that this process should be replaced."""
    request = json.loads(line)
    try:
        score, verdict, reason = grader.grade(request)
    except (MemoryError, RecursionError) as failure:
        return {"score": 0.0, "verdict": "error", "reason": f"{type(failure).__name__} in the grader", "last": True}
    except Exception as failure:
        reason = f"{type(failure).__name__} in the grader: {failure}"[:_REASON_CHARS]
        return {"score": 0.0, "verdict": "error", "reason": reason, "last": False}
    return {"score": score, "verdict": verdict, "reason": reason, "last": False}


def load(custom: list[str]) -> Grader:
    """math-verify, or the reward function of [key, path]."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    if not custom:
        from prime_megatron.verify.symbolic import MathGrader

        return MathGrader()
    from prime_megatron.verify.custom import RewardFunction

    key, path = custom
    return RewardFunction(path, key)


def main(memory_bytes: int, parent_pid: int, custom: list[str]) -> int:
    requests, replies = own_stdio()
    confine(memory_bytes, parent_pid)
    logging.disable(logging.CRITICAL)

    def say(message: dict[str, object]) -> None:
        os.write(replies, json.dumps(message).encode() + b"\n")

    try:
        grader = load(custom)
    except Exception as failure:
        # What our own errors say is a whole line, for the user.
        kind = "" if type(failure).__name__ == "InputError" else f"{type(failure).__name__}: "
        say({"ready": False, "reason": f"{kind}{failure}"})
        return 1
    say({"ready": True})
    with open(requests, "rb") as lines:
        for line in lines:
            reply = answer_one(grader, line)
            say(reply)
            if reply["last"]:
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
