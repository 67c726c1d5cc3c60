"""A seccomp filter of our own, assembled here: what a confined program may ask of the kernel.

Allowed is a list; everything else fails with EPERM (ENOSYS for calls newer than the list, so that libraries fall
back). No sockets, exec, fork (threads only), signals to others, ptrace, mounts, memfd, shared memory, io_uring, and
none of the calls that Landlock does not cover: chmod, chown, truncate by path, times, extended attributes, links.
Formats: linux/bpf_common.h, linux/seccomp.h, linux/audit.h; both machines are little-endian.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from prime_megatron.verify.code.jail.syscalls import ALLOWED, CONDITIONAL, FIRST_NEW_CALL

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of the tables, AUDIT_ARCH)."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

THREAD = 0x100 | 0x800 | 0x10000
"""CLONE_VM, CLONE_SIGHAND, CLONE_THREAD: all three, or it is no thread."""
NAMESPACES = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS and TIOCGWINSZ (isatty, terminal size), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
FCNTLS = (0, 1, 2, 3, 4, 1030, 1031, 1032)
"""Duplicates, flags, pipe sizes; no owners, signals or leases, by which others can be signalled."""
PRCTLS = (15, 16, 0x53564D41)
"""A thread's name, and the names that the C library gives to memory."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def column() -> int | None:
    """This machine's column in the tables; None: no filter for it is known."""
    known = MACHINES.get(platform.machine())
    return None if known is None or struct.calcsize("P") != 8 else known[0]


def offered() -> bool:
    """Whether this kernel has seccomp filters and this machine's numbers are known."""
    # With a null filter the kernel gets as far as reading it (EFAULT); without support it says EINVAL.
    answer = _prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return column() is not None and answer == -1 and ctypes.get_errno() == errno.EFAULT


@dataclass(frozen=True)
class Program:
    """Instructions of classic BPF, 8 bytes each; `for_pid` puts the process in that may be signalled: itself."""

    code: bytes
    pid_at: tuple[int, ...]
    """Offsets in `code` of the immediates that hold the pid."""

    def for_pid(self, pid: int) -> bytes:
        code = bytearray(self.code)
        for offset in self.pid_at:
            struct.pack_into("I", code, offset, pid)
        return bytes(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _errno(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


_PERMIT, _DENY = _op(_RETURN, _ALLOW), _errno(errno.EPERM)


def _low(argument: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * argument)


def _high(argument: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * argument + 4)


def _one_of(argument: int, values: tuple[int, ...]) -> bytes:
    """Permits when the argument (32 bits) is one of these."""
    tests = b"".join(_op(_EQUAL, value, if_false=1) + _PERMIT for value in values)
    return _low(argument) + tests + _DENY


def _conditions() -> dict[str, bytes]:
    limits_are_only_read = (
        _low(2) + _op(_EQUAL, 0, if_false=3) + _high(2) + _op(_EQUAL, 0, if_false=1) + _PERMIT + _DENY
    )
    return {
        "ioctl": _one_of(1, IOCTLS),
        "fcntl": _one_of(1, FCNTLS),
        "prctl": _one_of(0, PRCTLS),
        "clone": _low(0) + _op(_AND, THREAD | NAMESPACES) + _op(_EQUAL, THREAD, if_false=1) + _PERMIT + _DENY,
        # Of itself (process 0), and a null third argument changes nothing.
        "prlimit64": _low(0) + _op(_EQUAL, 0, if_false=5) + limits_are_only_read,
    }


def assemble(machine_column: int, audit_arch: int) -> Program:
    """The filter for a machine (see MACHINES)."""
    blocks = [
        _op(_LOAD, _ARCH) + _op(_EQUAL, audit_arch, if_true=1) + _op(_RETURN, _KILL_PROCESS),
        _op(_LOAD, _NUMBER),
    ]
    pid_at = []
    for numbers in ALLOWED.values():
        if numbers[machine_column] >= 0:
            blocks.append(_op(_EQUAL, numbers[machine_column], if_false=1) + _PERMIT)
    conditions = _conditions()
    for name, numbers in CONDITIONAL.items():
        if name in ("kill", "tgkill"):
            # kill -1 and 0 reach others; only the process itself may be named.
            body = _low(0) + _op(_EQUAL, 0, if_false=1) + _PERMIT + _DENY
            pid_at.append(sum(map(len, blocks)) + 8 + 8 + 4)
        else:
            body = conditions[name]
        blocks.append(_op(_EQUAL, numbers[machine_column], if_false=len(body) // 8) + body)
    blocks.append(_op(_AT_LEAST, FIRST_NEW_CALL, if_false=1) + _errno(errno.ENOSYS) + _DENY)
    return Program(b"".join(blocks), tuple(pid_at))


def program_here() -> Program:
    """The filter for this machine; `offered` must hold."""
    return assemble(*MACHINES[platform.machine()])


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def no_new_privileges() -> None:
    """No exec may raise this process's rights again. Raises OSError."""
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")


def install(program: Program) -> None:
    """Holds the calling process to the filter for good; no_new_privs must be set. Raises OSError."""
    code = program.for_pid(os.getpid())
    if _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(code) // 8, code)), 0, 0):
        raise OSError(ctypes.get_errno(), "the seccomp filter is refused")
