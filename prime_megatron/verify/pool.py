"""A few worker processes behind a queue, each killed when it overruns; no answer suffers for another's."""

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.errors import RunError
from prime_megatron.verify.answer import ERROR, Verdict
from prime_megatron.verify.process import WorkerDied, WorkerProcess, WorkerTimeout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerKind:
    """What the workers of a pool are.

    name: for messages. start: makes a process. timeout_s: wall-clock seconds for one request. read: a reply as a
    verdict and the number of tests behind it. overrun: the verdict of a request that takes longer; None: that is the
    worker's fault, and as if it had died.
    """

    name: str
    start: Callable[[], WorkerProcess]
    timeout_s: float
    read: Callable[[Mapping[str, Any]], tuple[Verdict, int]]
    overrun: Verdict | None


@dataclass(frozen=True)
class Usage:
    """What a pool did: answers, tests behind them, seconds that answers waited for a worker, seconds of workers."""

    num_answers: int = 0
    num_tests: int = 0
    queue_wait_s: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_answers + other.num_answers,
            self.num_tests + other.num_tests,
            self.queue_wait_s + other.queue_wait_s,
            self.busy_s + other.busy_s,
        )


@dataclass(frozen=True)
class Job:
    request: Mapping[str, str]
    submitted_s: float
    future: "Future[Verdict]" = field(default_factory=Future)


@dataclass
class Lane:
    """What one thread holds: its process, or None before the first job and after a failure."""

    process: WorkerProcess | None = None


class WorkerPool:
    """Grades requests in separate processes.

    Each thread here owns at most one process. Threads and processes start when there is work for them and not before.
    Per job: waiting in the queue and starting a process do not count against timeout_s. A process that overruns is
    killed and its job gets "timeout"; one that dies costs its job one retry, then "error"; other jobs notice nothing.

    kind: what a worker is. num_workers: processes at most. start_timeout_s: seconds for one process to get ready.
    """

    def __init__(self, kind: WorkerKind, num_workers: int, start_timeout_s: float = 120.0) -> None:
        self._kind = kind
        self._num_workers = num_workers
        self._start_timeout_s = start_timeout_s
        self._lock = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, WorkerProcess] = {}  # by pid, for close()
        self._num_idle = 0
        self._closed = False
        self._usage = Usage()

    def submit(self, request: Mapping[str, str]) -> "Future[Verdict]":
        """Queues one request. The future raises RunError when no worker can be started at all."""
        job = Job(request, time.monotonic())
        with self._lock:
            if self._closed:
                raise RunError(f"{self._kind.name} is closed")
            self._jobs.append(job)
            if self._num_idle < len(self._jobs) and len(self._threads) < self._num_workers:
                # Daemon: an interpreter that exits must not wait for answers nobody will read.
                thread = threading.Thread(target=self._serve, name=f"verify-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._lock.notify()
        return job.future

    def take_usage(self) -> Usage:
        """What was done since the last call."""
        with self._lock:
            usage, self._usage = self._usage, Usage()
            return usage

    def pids(self) -> list[int]:
        """The processes alive now."""
        with self._lock:
            return list(self._processes)

    def close(self) -> None:
        """Kills the processes; jobs that wait are cancelled, jobs that run get RunError."""
        with self._lock:
            self._closed = True
            while self._jobs:
                self._jobs.popleft().future.cancel()
            for process in self._processes.values():
                process.kill()
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """A thread's life: jobs one by one, on a process that is replaced when it fails."""
        lane = Lane()
        while (job := self._next_job()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                verdict = self._grade(lane, job)
            except BaseException as failure:
                self._discard(lane)
                job.future.set_exception(failure)
            else:
                job.future.set_result(verdict)
        self._discard(lane)

    def _next_job(self) -> Job | None:
        with self._lock:
            self._num_idle += 1
            while not self._jobs and not self._closed:
                self._lock.wait()
            self._num_idle -= 1
            return None if self._closed else self._jobs.popleft()

    def _grade(self, lane: Lane, job: Job) -> Verdict:
        waited_s, cause = time.monotonic() - job.submitted_s, ""
        for _ in range(2):
            process = lane.process or self._start(lane)
            start_s = time.monotonic()
            try:
                reply = process.ask(job.request, self._kind.timeout_s)
            except WorkerTimeout:
                self._discard(lane)
                if self._kind.overrun is not None:
                    self._count(Usage(1, 1, waited_s, time.monotonic() - start_s))
                    return self._kind.overrun
                cause = f"no reply within {self._kind.timeout_s:g} s"
            except WorkerDied as death:
                self._discard(lane)
                self._raise_if_closed()
                cause = str(death)
            else:
                verdict, num_tests = self._kind.read(reply)
                self._count(Usage(1, num_tests, waited_s, time.monotonic() - start_s))
                if reply["last"]:
                    self._discard(lane)
                return verdict
            logger.warning("a process of %s ended while it graded an answer (%s)", self._kind.name, cause)
        return Verdict(0.0, ERROR, f"the verifier process ended twice on this answer ({cause})")

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self._usage += usage

    def _start(self, lane: Lane) -> WorkerProcess:
        death: WorkerDied | None = None
        for _ in range(2):  # one process may fall to a passing lack of memory
            with self._lock:
                # Under the lock: close() either sees this process or keeps it from starting.
                self._raise_if_closed()
                process = lane.process = self._kind.start()
                self._processes[process.pid] = process
            try:
                process.wait_ready(self._start_timeout_s)
                return process
            except WorkerDied as failure:
                self._discard(lane)
                death = failure
        self._raise_if_closed()
        raise RunError(f"{self._kind.name} cannot start: {death}")

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise RunError(f"{self._kind.name} was closed before this answer was decided")

    def _discard(self, lane: Lane) -> None:
        """Ends the lane's process, if it has one."""
        if lane.process is None:
            return
        with self._lock:
            self._processes.pop(lane.process.pid, None)
        lane.process.discard()
        lane.process = None
