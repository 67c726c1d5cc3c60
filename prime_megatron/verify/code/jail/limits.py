"""Resource limits and the identity of a confined program."""

import ctypes
import os
import resource
import signal
import struct
from dataclasses import dataclass

MAX_TASKS = 64
"""Threads of a program that has a user of its own."""
TASKS_BESIDE = 4096
"""Threads beside those that the user has already, where the program shares the user's number."""
MAX_OPEN_FILES = 64
MAX_FILE_BYTES = 8 * 2**20
FIRST_UID, NUM_UIDS = 61_184, 4_000
"""Users that nobody has: the numbers that systemd gives to passing ones."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER = 1, 4, 8, 36
_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 47, 4
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """Of one program.

    cpu_s: seconds of processor time. memory_bytes: address space. max_tasks: processes and threads of its user.
    uid: the user that it becomes; None: it stays who it is (no right to change, or no such users here).
    """

    cpu_s: int
    memory_bytes: int
    max_tasks: int
    uid: int | None


def spare_uid() -> int | None:
    """A user for this process's children alone; None where this process may not change to one.

    Root is exempt from the limit on processes, so a program of root's must not stay root.
    """
    if os.getuid() != 0:
        return None
    uid = FIRST_UID + os.getpid() % NUM_UIDS
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError:
            os._exit(1)
        os._exit(0)
    return uid if os.waitpid(child, 0)[1] == 0 else None


def num_tasks_of_user() -> int:
    """Processes and threads of this user, from /proc."""
    uid, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid == uid:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:  # it has ended
            continue
    return count


def die_with_parent(parent_pid: int) -> None:
    """The calling process is killed when its parent's thread ends; at once if that has happened.

    A change of user undoes it: call this afterwards.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parent ends become this process's children, to be killed and reaped by it."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_limits(limits: Limits) -> None:
    """Hard limits, which also end a program that ignores signals. Raises OSError or ValueError."""
    for kind, value in (
        (resource.RLIMIT_CPU, limits.cpu_s + 1),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        most = _within_hard(kind, value)
        # Of processor time: a signal that says what for, and a second later one that cannot be ignored.
        resource.setrlimit(kind, (min(limits.cpu_s, most) if kind == resource.RLIMIT_CPU else most, most))
    tasks = _within_hard(resource.RLIMIT_NPROC, limits.max_tasks)
    resource.setrlimit(resource.RLIMIT_NPROC, (tasks, tasks))


def _within_hard(kind: int, value: int) -> int:
    """The value, or the hard limit that is there already where that is lower."""
    hard = resource.getrlimit(kind)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def drop_rights(uid: int | None) -> None:
    """Becomes the user and gives up every capability but that to read what Landlock leaves. Raises OSError.

    The interpreter may lie where only root can read (/root); Landlock names what is read, so that right adds nothing.
    """
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    has = ctypes.create_string_buffer(24)
    if _libc.capget(header, has):
        raise OSError(ctypes.get_errno(), "capabilities cannot be read")
    kept = struct.unpack("IIIIII", has.raw)[1] & 1 << _CAP_DAC_READ_SEARCH
    if uid is not None:
        os.setgroups([])
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    if _libc.capset(header, struct.pack("IIIIII", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no other process of the user may trace it
