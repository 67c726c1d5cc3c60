"""A few worker processes behind a queue, each killed when it overruns; no answer suffers for another's."""

import collections
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.errors import RunError
from prime_megatron.verify.answer import DIED, TIMEOUT, Verdict
from prime_megatron.verify.process import MATH_VERIFY, Grader, WorkerDied, WorkerProcess, WorkerTimeout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """What a pool did: answers, tests behind them, seconds that the answers waited for a worker, seconds of workers."""

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
    request: Mapping[str, Any]
    submitted_s: float
    future: "Future[Verdict]" = field(default_factory=Future)


@dataclass
class Lane:
    """What one thread holds: its process, or None before the first job and after a failure."""

    process: WorkerProcess | None = None


class WorkerPool:
    """Grades requests in separate processes, with math-verify or another grader.

    Each thread here owns at most one process. Threads and processes start when there is work for them and not before.
    Per job: waiting in the queue and starting a process do not count against timeout_s. A process that overruns is
    killed and its job gets "timeout"; one that dies costs its job one retry, then "died"; other jobs notice nothing.

    num_workers: processes at most. timeout_s: wall-clock seconds for one answer. memory_bytes: address space of one
    process. start_timeout_s: seconds for one process to load its grader. grader: what the processes load.
    """

    def __init__(
        self,
        num_workers: int,
        timeout_s: float,
        memory_bytes: int,
        start_timeout_s: float = 120.0,
        grader: Grader = MATH_VERIFY,
    ) -> None:
        self._grader = grader
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._start_timeout_s = start_timeout_s
        self._lock = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, WorkerProcess] = {}  # by pid, for close()
        self._num_idle = 0
        self._closed = False
        self._usage = Usage()
        self._said_death = False

    def take_usage(self) -> Usage:
        """What was done since the last call."""
        with self._lock:
            usage, self._usage = self._usage, Usage()
            return usage

    def new_process(self) -> WorkerProcess:
        """A worker that is about to load its grader."""
        return WorkerProcess(self._memory_bytes, self._grader)

    def num_tests(self, reply: Mapping[str, Any]) -> int:
        """Tests behind one reply."""
        return 1

    def submit(self, request: Mapping[str, Any]) -> "Future[Verdict]":
        """Queues one request of JSON values; the grader says which. The future raises RunError where a grader that is
        not optional cannot be started at all."""
        job = Job(request, time.monotonic())
        with self._lock:
            if self._closed:
                raise RunError(f"{self._grader.name} is closed")
            self._jobs.append(job)
            if self._num_idle < len(self._jobs) and len(self._threads) < self._num_workers:
                # Daemon: an interpreter that exits must not wait for answers that are not read.
                thread = threading.Thread(target=self._serve, name=f"verify-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._lock.notify()
        return job.future

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
            try:
                process = lane.process or self._start(lane)
            except RunError as failure:
                self._raise_if_closed()
                if not self._grader.optional:
                    raise
                self._discard(lane)
                return Verdict(0.0, DIED, str(failure))
            start_s = time.monotonic()
            try:
                reply = process.ask(job.request, self._timeout_s)
            except WorkerTimeout:
                self._discard(lane)
                return Verdict(0.0, TIMEOUT, f"not decided within {self._timeout_s:g} s")
            except WorkerDied as death:
                self._discard(lane)
                self._raise_if_closed()
                cause = str(death)
                self._count_death(cause)
                continue
            with self._lock:
                self._usage += Usage(1, self.num_tests(reply), waited_s, time.monotonic() - start_s)
            if reply["last"]:
                self._discard(lane)
            return Verdict(reply["score"], reply["verdict"], reply["reason"])
        return Verdict(0.0, DIED, f"the verifier process ended twice on this answer ({cause})")

    def _count_death(self, cause: str) -> None:
        """Say the first death; the others are counted in the verdicts, and seen at level INFO."""
        with self._lock:
            level = logging.INFO if self._said_death else logging.WARNING
            self._said_death = True
        text = "a process of %s ended while it graded an answer (%s); further ones are counted, not said"
        logger.log(level, text, self._grader.name, cause)

    def _start(self, lane: Lane) -> WorkerProcess:
        death: WorkerDied | None = None
        for _ in range(2):  # one process may fall to a passing lack of memory
            with self._lock:
                # Under the lock: close() either sees this process or keeps it from starting.
                self._raise_if_closed()
                process = lane.process = self.new_process()
                self._processes[process.pid] = process
            try:
                process.wait_ready(self._start_timeout_s)
                return process
            except WorkerDied as failure:
                self._discard(lane)
                death = failure
        self._raise_if_closed()
        raise RunError(f"{self._grader.name} cannot start: {death}")

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise RunError(f"{self._grader.name} was closed before this answer was decided")

    def _discard(self, lane: Lane) -> None:
        """Ends the lane's process, if it has one."""
        if lane.process is None:
            return
        with self._lock:
            self._processes.pop(lane.process.pid, None)
        lane.process.discard()
        lane.process = None
