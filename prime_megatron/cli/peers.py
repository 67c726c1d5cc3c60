"""The ranks that a rank must find: what the launcher says of them, and one line where they are not there."""

from __future__ import annotations

import os
import resource
import socket
from dataclasses import dataclass

from prime_megatron.errors import ExitCode, InputError
from prime_megatron.run.siblings import stopped_ranks

OPEN_FILES = 256
"""What a process of a small run has room for: sockets to its peers, files, pipes."""
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted",
        "remote process exited")  # fmt: skip
LATE = ("Timed out waiting", "timed out", "timeout")
ABOUT_PEERS = ("gloo", "NCCL", "socket")
"""A RuntimeError of a process group has one of these in its text; its other errors have a class of their own."""


@dataclass(frozen=True)
class Trouble:
    """What torch said of a peer, as one line."""

    text: str
    code: ExitCode
    late: bool = False
    """Others were waited for; none of them is known to have ended."""


def check_place() -> None:
    """The launcher's variables of this rank.

    Raises:
        InputError: one is missing, not a number or out of range, or MASTER_ADDR is the name of no host.
    """
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError(f"RANK is set in the environment and {name} is not: start with torchrun, or unset RANK")
    world = _number("WORLD_SIZE", 1, None)
    _number("RANK", 0, world - 1)
    if "LOCAL_RANK" in os.environ:
        _number("LOCAL_RANK", 0, None)
    _number("MASTER_PORT", 1, 65535)
    if not _is_host(os.environ["MASTER_ADDR"]):
        raise InputError(f"MASTER_ADDR {os.environ['MASTER_ADDR']}: no such host is known here; name that of rank 0")


def check_endpoint(endpoint: str) -> None:
    """--rdzv-endpoint.

    Raises:
        InputError: not HOST:PORT, a port out of range, a host that is not known.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InputError(f"--rdzv-endpoint {endpoint}: give HOST:PORT with a port from 1 to 65535")
    if not _is_host(host):
        raise InputError(f"--rdzv-endpoint {endpoint}: no such host is known here; name the first node")


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may.

    Raises:
        InputError: too low for any run.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise InputError(f"the limit of open files is {hard} (ulimit -n); a run needs {OPEN_FILES} and more")


def trouble_of(error: Exception, meeting: str) -> Trouble | None:
    """What this error says of the other ranks or of open files; None for any other error.

    Args:
        error: as torch raised it.
        meeting: where the ranks or nodes meet, as the user gave it: "MASTER_ADDR:MASTER_PORT host:29500".
    """
    text = str(error)
    first = text.splitlines()[0] if text else ""
    if "Too many open files" in text or "Failed to init uv loop" in text:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Trouble(f"too many open files: the limit is {limit} (ulimit -n); raise it", ExitCode.FAILED)
    of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    if not of_torch and not (isinstance(error, RuntimeError) and any(word in text for word in ABOUT_PEERS)):
        return None
    if "EADDRINUSE" in text:
        return Trouble(f"{meeting}: the port is taken on this host; choose another", ExitCode.BAD_INPUT)
    if "waiting for clients" in text or "while trying to connect" in text:
        return Trouble(f"the others were not found at {meeting}: {first}", ExitCode.FAILED, late=True)
    rank = os.environ.get("RANK", "?")
    if any(word in text for word in GONE):
        text = f"rank {rank} lost another rank ({_short(first)}); its own error, or who killed it, is told where it ran"
        return Trouble(text, ExitCode.FAILED)
    if any(word in text for word in LATE):
        text = f"rank {rank} waited for another rank as long as parallel.timeout_s allows ({_short(first)})"
        return Trouble(text + stopped_ranks(), ExitCode.FAILED, late=True)
    return None


def _short(line: str) -> str:
    """Without the place in torch's sources."""
    return line.partition("] ")[2] or line


def _number(name: str, least: int, most: int | None) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        bounds = f"{least} to {most}" if most is not None else f"{least} or more"
        raise InputError(f"{name} is {text!r} in the environment; it must be a number, {bounds}")
    return int(text)


def _is_host(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError):
        return False
    return True
