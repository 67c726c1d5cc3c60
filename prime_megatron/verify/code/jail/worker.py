"""The worker: holds the tests, runs them one by one in children of its zygote, compares, and scores a sample.

One JSON request a line on stdin, one JSON reply a line on stdout; the parent keeps the time of the whole.
    {"code": ..., "ground_truth": ...}  ->  {"score", "verdict", "reason", "num_tests", "last"}
"""

import collections
import json
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.verify.code.jail import limits, score
from prime_megatron.verify.code.jail.attempt import PASSED, TIME_LIMIT, Bench, Outcome, Test
from prime_megatron.verify.code.jail.spawn import JailRefused, Zygote, ZygoteLost
from prime_megatron.verify.code.jail.truth import parse_truth

ERROR = "error"
_ATTEMPTS = 3
"""Zygotes that one test may cost before the sample is given up as an error, and starts that one zygote may take."""
_KEPT_TRUTHS = 8


@dataclass(frozen=True)
class Settings:
    """As `Lab` needs them; from the command line as JSON.

    scratch: an empty folder. jail: landlock or none. score: see `score`. timeout_s: of a test. sample_timeout_s: of a
    sample. memory_bytes: address space of a program. output_bytes: what it may write.
    """

    scratch: str
    jail: str
    score: str
    timeout_s: float
    sample_timeout_s: float
    memory_bytes: int
    output_bytes: int


@dataclass
class Lab:
    """Scores samples; replaces its zygote when that is lost."""

    settings: Settings
    _zygote: Zygote | None = None
    _truths: "collections.OrderedDict[str, list[Test]]" = field(default_factory=collections.OrderedDict)

    def zygote(self) -> Zygote:
        """The zygote, started when there is none. Raises JailRefused or ZygoteLost."""
        settings = self.settings
        cpu_s = int(settings.timeout_s) + 2  # the wall limit ends it before
        for attempt in range(_ATTEMPTS):
            if self._zygote is not None:
                break
            try:
                self._zygote = Zygote(settings.scratch, settings.jail, cpu_s, settings.memory_bytes)
            except ZygoteLost:
                if attempt + 1 == _ATTEMPTS:
                    raise
        assert self._zygote is not None
        return self._zygote

    def score(self, code: str, ground_truth: str) -> dict[str, Any]:
        """The reply to one request."""
        tests = self._tests(ground_truth)
        until_s = time.monotonic() + self.settings.sample_timeout_s
        seen: list[Outcome] = []

        def passes(index: int) -> bool:
            if time.monotonic() >= until_s:
                seen.append(Outcome(TIME_LIMIT, f"the sample's limit of {self.settings.sample_timeout_s:g} s"))
            else:
                seen.append(self._run(code, tests[index], until_s))
            return seen[-1].passed

        try:
            outcomes = score.run_as_needed(len(tests), self.settings.score, passes)
        except ZygoteLost as failure:
            return {"score": 0.0, "verdict": ERROR, "reason": str(failure)[:200], "num_tests": len(seen), "last": True}
        bad = next(((n, outcome) for n, outcome in enumerate(seen, start=1) if not outcome.passed), None)
        passed = f"{sum(outcomes)} of {len(tests)} tests pass"
        return {
            "score": score.score_of(outcomes, len(tests), self.settings.score),
            "verdict": PASSED if bad is None else bad[1].kind,
            "reason": passed if bad is None else f"{passed}; test {bad[0]}: {bad[1].reason}"[:300],
            "num_tests": len(seen),
            "last": False,
        }

    def _run(self, code: str, test: Test, until_s: float) -> Outcome:
        for attempt in range(_ATTEMPTS):
            try:
                settings = self.settings
                bench = Bench(self.zygote(), settings.scratch, settings.timeout_s, settings.output_bytes)
                return bench.run(code, test, until_s)
            except ZygoteLost:
                self.close()
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError("not reached")

    def _tests(self, ground_truth: str) -> list[Test]:
        """Siblings share a ground truth."""
        tests = self._truths.pop(ground_truth, None)
        self._truths[ground_truth] = tests = parse_truth(ground_truth) if tests is None else tests
        while len(self._truths) > _KEPT_TRUTHS:
            self._truths.popitem(last=False)
        return tests

    def close(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None


def own_stdio() -> tuple[int, int]:
    """Private copies of stdin and stdout; 0 and 1 become /dev/null, so that nothing else can speak on the pipe."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return requests, replies


def main(arguments: list[str]) -> int:
    """PARENT_PID SETTINGS (JSON): says {"ready": true} or why not, and serves until stdin ends."""
    requests, replies = own_stdio()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    limits.die_with_parent(int(arguments[0]))
    lab = Lab(Settings(**json.loads(arguments[1])))

    def say(message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(replies, data) :]

    try:
        lab.zygote()
    except (JailRefused, ZygoteLost) as failure:
        say({"ready": False, "reason": str(failure)[:200]})
        return 1
    say({"ready": True})
    with open(requests, "rb") as lines:
        for line in lines:
            request = json.loads(line)
            try:
                reply = lab.score(request["code"], request["ground_truth"])
            except (ValueError, JailRefused, MemoryError, OSError) as failure:
                reason = f"{type(failure).__name__}: {failure}"[:200]
                reply = {"score": 0.0, "verdict": ERROR, "reason": reason, "num_tests": 0, "last": True}
            say(reply)
            if reply["last"]:
                break
    lab.close()
    return 0
