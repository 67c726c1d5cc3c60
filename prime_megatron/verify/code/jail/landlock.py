"""Landlock (Linux 5.13 and newer): which paths a process may read and write, without namespaces or root.

Numbers and structures: linux/landlock.h; what a kernel knows is its ABI number (7 in Linux 6.18).
"""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 1 << 8, 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
OF_FILES = READ_FILE | WRITE_FILE | TRUNCATE
"""Rights that a rule on one file, not a folder, may name."""
SCRATCH = READ | WRITE_FILE | TRUNCATE | REMOVE_FILE | MAKE_REG
"""Plain files in one flat folder: no folders, links, sockets or devices."""

_FS_BY_ABI = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)
_NET_BY_ABI = (0, 0, 0, 0, 3)
_SCOPED_BY_ABI = (0, 0, 0, 0, 0, 0, 3)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def abi() -> int:
    """The kernel's Landlock ABI; 0 where there is none, or it is off."""
    return max(0, _syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def holds(version: int) -> list[str]:
    """What this ABI holds back beside reading and writing files."""
    parts = [(2, "moves between folders"), (3, "truncation"), (4, "TCP"), (5, "device ioctls")]
    parts += [(6, "abstract sockets and signals")]
    return [name for first, name in parts if version >= first]


def make_ruleset(readable: Sequence[str], writable: Sequence[str], scratch: str) -> int:
    """A ruleset's descriptor: `readable` trees and files for reading, `writable` ones (devices) for both, one scratch.

    Everything else is refused to whoever restricts itself by it. Paths that do not exist are passed over.

    Raises:
        OSError: the kernel has no Landlock, or refuses a rule.
    """
    version = abi()
    attributes = struct.pack(
        "QQQ",
        _FS_BY_ABI[min(version, len(_FS_BY_ABI) - 1)],
        _NET_BY_ABI[min(version, len(_NET_BY_ABI) - 1)],
        _SCOPED_BY_ABI[min(version, len(_SCOPED_BY_ABI) - 1)],
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)))
    os.set_inheritable(ruleset, False)
    known = _FS_BY_ABI[min(version, len(_FS_BY_ABI) - 1)]
    for access, paths in ((READ, readable), (READ | WRITE_FILE, writable), (SCRATCH, (scratch,))):
        for path in paths:
            _allow(ruleset, path, access & known)
    return ruleset


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            access &= OF_FILES
        rule = struct.pack("=Qi", access, target)
        _checked(_syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)))
    finally:
        os.close(target)


def restrict_self(ruleset: int) -> None:
    """Holds the calling thread to the ruleset for good; no_new_privs must be set. Raises OSError."""
    _checked(_syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
