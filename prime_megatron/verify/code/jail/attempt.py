"""One test of one program: children, pipes, limits, and what came of it."""

import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prime_megatron.verify.code.jail import values
from prime_megatron.verify.code.jail.compare import same_output, same_result
from prime_megatron.verify.code.jail.spawn import Child, Zygote
from prime_megatron.verify.code.jail.watch import OUTPUT, SCRATCH, TIME, Feed, Sink, Watch

PASSED, WRONG, EXCEPTION, CRASHED = "correct", "wrong", "exception", "crashed"
TIME_LIMIT, MEMORY_LIMIT, OUTPUT_LIMIT = "time_limit", "memory_limit", "output_limit"

_LEAST_OUTPUT_BYTES = 1 << 20
_OUTPUT_PER_EXPECTED = 16


@dataclass(frozen=True)
class Outcome:
    """kind: PASSED or what went wrong; reason: one line for a person."""

    kind: str
    reason: str

    @property
    def passed(self) -> bool:
        return self.kind == PASSED


@dataclass(frozen=True)
class ScriptTest:
    """Standard input and what must come out."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class CallTest:
    """Arguments of a function and the results that are right, as JSON values; one of several is enough."""

    function: str
    arguments: list[Any]
    expected: list[Any]


@dataclass(frozen=True)
class AssertTest:
    """Python that asserts; `aliases` are names in it that stand for the program's functions."""

    source: str
    aliases: dict[str, str]


Test = ScriptTest | CallTest | AssertTest


@dataclass(frozen=True)
class Bench:
    """Where tests run.

    scratch: the folder that a program may write, emptied after every test. timeout_s: wall-clock seconds of a test.
    output_bytes: what a program may write, unless the expected output is larger.
    """

    zygote: Zygote
    scratch: str
    timeout_s: float
    output_bytes: int

    def run(self, code: str, test: Test, until_s: float) -> Outcome:
        """Runs one test, to its own limit or `until_s` on the monotonic clock. Raises ZygoteLost."""
        try:
            if isinstance(test, ScriptTest):
                return self._script(code, test, until_s)
            if isinstance(test, CallTest):
                return self._call(code, test, until_s)
            return self._assert(code, test, until_s)
        finally:
            empty(self.scratch)

    def _script(self, code: str, test: ScriptTest, until_s: float) -> Outcome:
        with _pipes(3) as pipes:
            (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes.pairs
            child = self.zygote.spawn("script", {"code": code}, [their_in, their_out, their_err])
            pipes.close(their_in, their_out, their_err)
            pipes.release(our_in, our_out, our_err)
            limit = max(self.output_bytes, 2 * len(test.expected))
            out, err = Sink(our_out, limit), Sink(our_err, limit, tail=True)
            stdin = memoryview(test.stdin.encode("utf-8", errors="surrogatepass"))
            passed, status = self._watch([child], [Feed(our_in, stdin)], [out, err], until_s)
        if passed is not None:
            return self._over(passed)
        if status != 0:
            return _ended_badly(status, bytes(err.data))
        if same_output(out.data.decode("utf-8", errors="surrogateescape"), test.expected):
            return Outcome(PASSED, "")
        return Outcome(WRONG, "another output")

    def _call(self, code: str, test: CallTest, until_s: float) -> Outcome:
        nonce = secrets.token_hex(16)
        request = values.write([test.function, test.arguments, {}], lambda _: 0)
        with _pipes(2) as pipes, _null() as null:
            (their_requests, our_requests), (our_replies, their_replies) = pipes.pairs
            given = [null, null, null, their_requests, their_replies]
            child = self.zygote.spawn("serve", {"code": code, "nonce": nonce}, given)
            pipes.close(their_requests, their_replies)
            pipes.release(our_requests, our_replies)
            sink = Sink(our_replies, _LEAST_OUTPUT_BYTES + _OUTPUT_PER_EXPECTED * _size(test.expected))
            feed = Feed(our_requests, memoryview(request.encode() + b"\n"))
            passed, status = self._watch([child], [feed], [sink], until_s)
        if passed is not None:
            return self._over(passed)
        return _judge(bytes(sink.data), nonce, test.expected, status)

    def _assert(self, code: str, test: AssertTest, until_s: float) -> Outcome:
        nonce = secrets.token_hex(16)
        spec = {"test": test.source, "aliases": test.aliases, "nonce": nonce, "max_bytes": self.output_bytes}
        with _pipes(3) as pipes, _null() as null:
            (program_in, tester_out), (tester_in, program_out), (our_verdict, their_verdict) = pipes.pairs
            program = self.zygote.spawn(
                "serve", {"code": code, "nonce": nonce}, [null, null, null, program_in, program_out]
            )
            children = [program]
            try:
                given = [null, null, null, tester_in, tester_out, their_verdict]
                children.insert(0, self.zygote.spawn("tests", spec, given))
            except BaseException:
                with contextlib.suppress(Exception):
                    self.zygote.reap(program)
                raise
            pipes.close(program_in, program_out, tester_in, tester_out, their_verdict)
            pipes.release(our_verdict)
            sink = Sink(our_verdict, 4096)
            passed, _ = self._watch(children, [], [sink], until_s)
        if passed is not None:
            return self._over(passed)
        verdict, _, reason = sink.data.decode("utf-8", errors="replace").partition(" ")
        if verdict == "passed":
            return Outcome(PASSED, "")
        return Outcome(WRONG, reason or "the tests ended early")

    def _watch(
        self, children: list[Child], feeds: list[Feed], sinks: list[Sink], until_s: float
    ) -> tuple[str | None, int]:
        """(limit that was passed, wait status of the first child); the children are gone afterwards."""
        deadline_s = min(time.monotonic() + self.timeout_s, until_s)
        watch = Watch(feeds, sinks, self.scratch)
        try:
            passed = watch.until(children[0].pidfd, deadline_s)
        finally:
            watch.close()
            statuses = [self.zygote.reap(child) for child in children]
        return passed, statuses[0]

    def _over(self, limit: str) -> Outcome:
        if limit == TIME:
            return Outcome(TIME_LIMIT, f"not done within {self.timeout_s:g} s, or the sample's limit")
        assert limit in (OUTPUT, SCRATCH)
        return Outcome(OUTPUT_LIMIT, "too much output" if limit == OUTPUT else "too many or too large files")


def _judge(reply: bytes, nonce: str, expected: list[Any], status: int) -> Outcome:
    """What a call's reply is worth."""
    start = f"{nonce} 0 ".encode()
    if not reply:
        bad = _ended_badly(status, b"") if status else Outcome(EXCEPTION, "")
        return Outcome(bad.kind, bad.reason or "the program ended before it answered")
    if not reply.startswith(start) or reply.count(b"\n") != 1:
        return Outcome(WRONG, "the program wrote where only results go")
    kind, _, content = reply.removeprefix(start).decode("ascii", errors="replace").rstrip("\n").partition(" ")
    try:
        given = values.read_json(content)
    except ValueError as problem:
        return Outcome(WRONG, f"not a JSON value: {problem}")
    if kind == "raised":
        name, message = given if isinstance(given, list) and len(given) == 2 else ["", ""]
        return Outcome(MEMORY_LIMIT if name == "MemoryError" else EXCEPTION, f"{name}: {message}"[:200])
    if any(same_result(given, value) for value in expected):
        return Outcome(PASSED, "")
    return Outcome(WRONG, "another result")


def _ended_badly(status: int, err: bytes) -> Outcome:
    """A child that did not end with exit code 0."""
    lines = err.decode("utf-8", errors="replace").strip().splitlines()
    last = lines[-1][:200] if lines else ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU,):
            return Outcome(TIME_LIMIT, "out of processor time")
        return Outcome(CRASHED, f"ended by {signal.Signals(number).name}")
    if last.startswith("MemoryError"):
        return Outcome(MEMORY_LIMIT, "MemoryError")
    return Outcome(EXCEPTION, last or f"exit code {os.WEXITSTATUS(status)}")


def _size(value: Any) -> int:
    """Characters of a JSON value, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return 2 + sum(map(_size, value))
    if isinstance(value, dict):
        return 2 + sum(len(key) + _size(item) for key, item in value.items())
    return len(str(value)) + 2


def empty(folder: str) -> None:
    """Removes everything in the folder; links are removed, not followed."""
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


class _Pipes:
    """Pipes whose ends are closed when the block ends, but those that were released to another owner."""

    def __init__(self, count: int) -> None:
        self.pairs = [os.pipe() for _ in range(count)]
        self._open = {end for pair in self.pairs for end in pair}

    def close(self, *ends: int) -> None:
        for end in ends:
            self._open.discard(end)
            os.close(end)

    def release(self, *ends: int) -> None:
        self._open.difference_update(ends)


@contextlib.contextmanager
def _pipes(count: int) -> Iterator[_Pipes]:
    pipes = _Pipes(count)
    try:
        yield pipes
    finally:
        pipes.close(*tuple(pipes._open))


@contextlib.contextmanager
def _null() -> Iterator[int]:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        yield null
    finally:
        os.close(null)
