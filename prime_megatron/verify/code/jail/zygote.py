"""The zygote: a warm interpreter that forks one confined child a test. It holds no tests and no expected values.

Speaks with its worker over a SOCK_SEQPACKET socket, one JSON packet each way:
    {"spawn": MODE} + descriptors [spec, 0, 1, 2, ...]   ->   {"pid": n} + its pidfd, or {"failed": why}
    {"reap": pid}                                        ->   {"status": wait status}
"""

import contextlib
import dataclasses
import fcntl
import gc
import importlib
import json
import os
import signal
import site
import socket
import sys
import sysconfig
from dataclasses import dataclass
from typing import Any

from prime_megatron.verify.code.jail import asserts, child, landlock, limits, seccomp

SPEC_AT = 10
"""Where a child finds its spec: beyond every descriptor that a mode uses."""
_WARM = (
    "array ast bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions "
    "functools heapq inspect io itertools json math numbers operator queue random re statistics string struct "
    "textwrap threading time traceback typing"
).split()
"""Imported before the first fork: what programs import most costs them nothing."""


@dataclass(frozen=True)
class Jail:
    """What every child is held to; ruleset and program are None where the jail is `none`."""

    scratch: str
    limits: limits.Limits
    ruleset: int | None
    program: seccomp.Program | None


def readable_paths() -> list[str]:
    """Python, its packages, shared libraries and time zones."""
    paths = [*sysconfig.get_paths().values(), sys.base_prefix + "/lib", sys.base_exec_prefix + "/lib"]
    paths = [p for p in paths if not p.endswith(("/bin", "/include")) and p not in (sys.prefix, sys.base_prefix)]
    paths += site.getsitepackages()
    paths += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    return sorted({path for path in paths if path not in ("/", "/usr", "/usr/local")})


def make_jail(scratch: str, kind: str, cpu_s: int, memory_bytes: int) -> Jail:
    """Raises OSError where the kernel refuses a part of it."""
    if kind == "none":
        return Jail(scratch, limits.Limits(cpu_s, memory_bytes, limits.num_tasks_of_user() + limits.TASKS_BESIDE, None),
                    None, None)  # fmt: skip
    uid = limits.spare_uid()
    if uid is not None:
        os.chown(scratch, uid, uid)
    tasks = limits.MAX_TASKS if uid is not None else limits.num_tasks_of_user() + limits.TASKS_BESIDE
    ruleset = landlock.make_ruleset(readable_paths(), ["/dev/null", "/dev/zero", "/dev/urandom"], scratch)
    return Jail(scratch, limits.Limits(cpu_s, memory_bytes, tasks, uid), ruleset, seccomp.program_here())


def confine(jail: Jail, parent_pid: int) -> None:
    """Holds the calling process, a fresh child, to the jail for good. Raises OSError or ValueError."""
    os.setsid()
    os.chdir(jail.scratch)
    os.umask(0o077)
    limits.set_limits(jail.limits)
    if jail.program is None or jail.ruleset is None:
        limits.die_with_parent(parent_pid)
        return
    limits.drop_rights(jail.limits.uid)
    limits.die_with_parent(parent_pid)
    seccomp.no_new_privileges()
    landlock.restrict_self(jail.ruleset)
    os.close(jail.ruleset)
    seccomp.install(jail.program)


def _place(given: list[int], kept: list[int]) -> None:
    """given[0] becomes SPEC_AT, the others 0, 1, 2, ...; every descriptor beyond is closed, but those `kept`."""
    targets = [SPEC_AT, *range(len(given) - 1)]
    for target, source in zip(targets, [fcntl.fcntl(number, fcntl.F_DUPFD, 200) for number in given]):
        os.dup2(source, target)
    wanted = sorted({*targets, *kept})
    for before, after in zip(wanted, [*wanted[1:], 65_536]):
        os.closerange(before + 1, after)


def _be_child(jail: Jail, mode: str, given: list[int], told: int, parent_pid: int) -> None:
    """The forked child's life; never returns. `told` hears "ok" once it is confined, or what failed."""
    try:
        told = fcntl.fcntl(told, fcntl.F_DUPFD, 150)
        kept = [told]
        if jail.ruleset is not None:
            jail = dataclasses.replace(jail, ruleset=fcntl.fcntl(jail.ruleset, fcntl.F_DUPFD, 150))
            kept.append(jail.ruleset)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _place(given, kept)
        with open(SPEC_AT, "rb") as file:
            spec = json.loads(file.read())
        confine(jail, parent_pid)
        os.write(told, b"ok")
        os.close(told)
    except BaseException as failure:
        with contextlib.suppress(OSError):
            os.write(told, f"{type(failure).__name__}: {failure}"[:500].encode())
        os._exit(1)
    for name in [name for name in sys.modules if name.partition(".")[0] == "prime_megatron"]:
        del sys.modules[name]
    if mode == "script":
        child.run_script(spec["code"])
    elif mode == "serve":
        child.Server(spec["nonce"]).serve(spec["code"])
    else:
        asserts.run_tests(spec)


def spawn(jail: Jail, mode: str, given: list[int], live: set[int]) -> tuple[dict[str, Any], list[int]]:
    """Forks a child with these descriptors; the reply to the worker, and the descriptors that go with it."""
    hears, told = os.pipe()
    parent_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError as failure:
        os.close(hears)
        os.close(told)
        return {"failed": f"fork: {failure}"}, []
    if pid == 0:
        _be_child(jail, mode, given, told, parent_pid)
    os.close(told)
    with open(hears, "rb") as file:
        said = file.read()
    if said != b"ok":
        reap(pid, live)
        return {"failed": said.decode(errors="replace") or "the child ended before it was confined"}, []
    live.add(pid)
    return {"pid": pid}, [os.pidfd_open(pid)]


def reap(pid: int, live: set[int]) -> int:
    """Kills the child, its session and whatever else it left behind; its wait status."""
    os.kill(pid, signal.SIGKILL)  # no error while it has not been waited for
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    live.discard(pid)
    while orphans := _children() - live:
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
    return status


def _children() -> set[int]:
    """This process's children; descendants whose parent has ended are among them (only without a jail)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return set(map(int, file.read().split()))
    except OSError:  # a kernel without this file
        return set()


def main(arguments: list[str]) -> int:
    """SOCKET PARENT_PID SCRATCH landlock|none CPU_S MEMORY_BYTES: says {"ready": true} and serves until the end."""
    control = socket.socket(fileno=int(arguments[0]))
    limits.die_with_parent(int(arguments[1]))
    limits.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.putenv(name, "1")  # for numpy's libraries, which read it in C: a thread a core would not fit the limits
    sys.argv = ["solution.py"]
    sys.path[:] = [
        path for path in sys.path if path in sysconfig.get_paths().values() or path.startswith(sys.base_prefix)
    ]
    sys.dont_write_bytecode = True
    try:
        jail = make_jail(arguments[2], arguments[3], int(arguments[4]), int(arguments[5]))
    except OSError as failure:
        control.send(json.dumps({"failed": str(failure)}).encode())
        return 1
    for name in _WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": True}).encode())
    serve(control, jail)
    return 0


def serve(control: socket.socket, jail: Jail) -> None:
    """Requests until the worker is gone."""
    live: set[int] = set()
    while True:
        packet, given, _, _ = socket.recv_fds(control, 65_536, 16)
        if not packet:
            return
        request = json.loads(packet)
        attached: list[int] = []
        if "spawn" in request:
            reply, attached = spawn(jail, request["spawn"], given, live)
        else:
            reply = {"status": reap(request["reap"], live)}
        for number in given:
            os.close(number)
        socket.send_fds(control, [json.dumps(reply).encode()], attached)
        for number in attached:
            os.close(number)
