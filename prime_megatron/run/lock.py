"""One owner per output folder: a file that names the run which writes there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json, read_bytes

LOCK_FILE = ".prime-megatron-owner"
"""Below run.output_dir."""
MAX_LOCK_BYTES = 2**16
BEAT_S = 5.0
"""Seconds between two signs of life of an owner."""
PATIENCE_S = 20.0
"""An owner on another host that gives no sign for this long is dead; where SLURM knows its job, SLURM is asked."""
MUTEX_S = 60.0
"""A takeover takes milliseconds; one that is older than this was cut short."""
ENDED_STATES = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING",
                "PREEMPTED", "REVOKED", "TIMEOUT")  # fmt: skip
"""Of a SLURM job that runs no process."""


@dataclass(frozen=True)
class Owner:
    """Who writes to a folder."""

    job: str
    """SLURM_JOB_ID; empty outside SLURM."""
    attempt: str
    """SLURM_RESTART_COUNT; empty outside SLURM, "0" where SLURM does not set it."""
    host: str
    boot: str
    """The host's boot id: process ids begin anew with it."""
    pid: int
    started: str
    """Of the process, in clock ticks since the boot: a process id may be used again."""
    since: str
    """UTC time of the lock, ISO 8601."""
    token: str
    """Tells two locks apart."""

    @classmethod
    def this_process(cls) -> Owner:
        """The calling process as an owner."""
        job = os.environ.get("SLURM_JOB_ID", "")
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pid = os.getpid()
        attempt = restarts if job else ""
        return cls(job, attempt, socket.gethostname(), _boot_id(), pid, _started(pid), now, uuid.uuid4().hex)

    def __str__(self) -> str:
        job = f"job {self.job} (attempt {self.attempt}), " if self.job else ""
        return f"{job}host {self.host}, process {self.pid}, since {self.since}"


def check_owner(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Whether no other run writes to the folder; changes nothing.

    Args:
        folder: run.output_dir.
        patience_s: longest wait for a sign of life of an owner on another host that SLURM does not know.

    Raises:
        InputError: a living run owns it.
    """
    owner = read_owner(folder)
    if owner is not None and _lives(folder, owner, patience_s):
        raise InputError(
            f"run.output_dir: {folder} belongs to another run: {owner}; wait for its end, stop it, or choose another "
            "folder"
        )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own the folder within the block, made where there is none; a dead owner's lock is taken over.

    Raises:
        InputError: a living run owns it; the folder cannot be written to.
    """
    me = Owner.this_process()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder, me)
    except OSError as error:
        raise InputError(f"run.output_dir: cannot write to {folder} ({error.strerror})") from None
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder / LOCK_FILE, over), daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if read_owner(folder) == me:
            (folder / LOCK_FILE).unlink(missing_ok=True)


def read_owner(folder: Path) -> Owner | None:
    """Who the lock names, dead or alive; None: nobody."""
    try:
        owner = Owner(**parse_json(read_bytes(folder / LOCK_FILE, MAX_LOCK_BYTES)))
    except (FileNotFoundError, ValueError, TypeError, NotADirectoryError):
        return None
    texts = (value for name, value in asdict(owner).items() if name != "pid")
    return owner if type(owner.pid) is int and all(isinstance(text, str) for text in texts) else None


def _take(folder: Path, me: Owner) -> None:
    path, mine = folder / LOCK_FILE, folder / f"{LOCK_FILE}-{me.token}"
    mine.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
    try:
        while not _link(mine, path):
            check_owner(folder)
            # One at a time removes a dead owner's lock: it must not be a new one by then.
            mutex = folder / f"{LOCK_FILE}-takeover"
            if not _link(mine, mutex):
                _expire(mutex)
                time.sleep(0.1)
                continue
            try:
                check_owner(folder)
                path.unlink(missing_ok=True)
            finally:
                mutex.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    """Whether this call made ``target``: atomic on network file systems, too."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _expire(mutex: Path) -> None:
    try:
        if time.time() - mutex.stat().st_mtime > MUTEX_S:
            mutex.unlink()
    except FileNotFoundError:
        return


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            os.utime(path)
        except OSError:
            continue  # a file system that is away for a moment


def _lives(folder: Path, owner: Owner, patience_s: float) -> bool:
    known = known_to_live(owner)
    return _gives_a_sign(folder / LOCK_FILE, patience_s, time.sleep) if known is None else known


def known_to_live(owner: Owner) -> bool | None:
    """Whether an owner lives, where that can be asked: of this host or of SLURM. None: only its signs of life tell."""
    me = Owner.this_process()
    if owner.job and owner.job == me.job and owner.attempt != me.attempt:
        return False  # SLURM has one attempt of a job at a time
    if (owner.host, owner.boot) == (me.host, me.boot):
        return _started(owner.pid) == owner.started
    if owner.host == me.host:
        return False
    return job_runs(owner.job) if owner.job and owner.job != me.job else None


def job_runs(job: str) -> bool | None:
    """Whether a SLURM job has processes; None where SLURM cannot be asked."""
    squeue = shutil.which("squeue")
    if squeue is None:
        return None
    asked = subprocess.run(
        [squeue, "--noheader", "--jobs", job, "--states", "all", "--format", "%T"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if asked.returncode != 0:
        return False if "Invalid job id" in asked.stderr else None
    return any(state not in ENDED_STATES for state in asked.stdout.split())


def _gives_a_sign(path: Path, patience_s: float, sleep: Callable[[float], None]) -> bool:
    """Whether the lock is touched, or replaced, within this time; clocks of two hosts are not compared."""
    first = last_sign_ns(path)
    for _ in range(max(1, round(patience_s))):
        sleep(1.0)
        if last_sign_ns(path) != first:
            return True
    return False


def last_sign_ns(path: Path) -> int:
    """When a lock was last touched by its owner, in nanoseconds of the file system's clock; 0: there is none."""
    try:
        with path.open("rb") as file:  # opened: network file systems look again then
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the boot; empty: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
