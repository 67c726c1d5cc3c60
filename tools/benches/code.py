"""Tests of generated programs a second: the jail, plain `subprocess`, and the public checker's way, in one run.

    python tools/bench.py code [--programs 40] [--tests 5]

subprocess: one interpreter a test, nothing held. public: what PRIME's own checker does, rebuilt: a forked process a
sample, the program run by exec inside it under an alarm with standard streams replaced; nothing held. jail: ours, one
worker. All run the same programs one after the other, on one core at a time; milliseconds of a test are wall-clock.

    python tools/bench.py code --flood [--samples 1000] [--loops 0.05] [--workers 2]

flood: samples of ten tests of which a share never ends; wall time beside limits x loops / workers + the rest.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prime_megatron.config import CodeConfig
from prime_megatron.verify import Answer
from prime_megatron.verify.code.verifier import CodeVerifier

PROGRAM = "import sys\nn, *rest = map(int, sys.stdin.read().split())\nprint(sum(x * x for x in rest) + {index})"
LOOP = "while True: pass"
ALARM_S = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--programs", type=int, default=40, help="programs of the comparison")
    parser.add_argument("--tests", type=int, default=5, help="tests a program")
    parser.add_argument("--flood", action="store_true", help="measure many samples with endless loops instead")
    parser.add_argument("--samples", type=int, default=1000, help="samples of the flood")
    parser.add_argument("--loops", type=float, default=0.05, help="share of the samples that never end")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the flood")
    parser.add_argument("--sample-timeout-s", type=float, default=4.0, help="limit of a sample in the flood")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one comparison, or of one flood."""
    if arguments.flood:
        return flood(arguments.samples, arguments.loops, arguments.workers, arguments.sample_timeout_s)
    programs = [PROGRAM.format(index=index) for index in range(arguments.programs)]
    inputs = [f"3 {n} {n + 1} {n + 2}\n" for n in range(arguments.tests)]
    figures: dict[str, Any] = {"bench": "code", "programs": len(programs), "tests_per_program": len(inputs)}
    for name, way in (("subprocess", by_subprocess), ("public", by_fork_and_alarm), ("jail", by_jail)):
        samples_ms = way(programs, inputs)
        figures[name] = {
            "median_test_ms": round(statistics.median(samples_ms), 2),
            "tests_per_s": round(1000.0 / statistics.fmean(samples_ms), 1),
        }
    extra = figures["jail"]["median_test_ms"] - figures["subprocess"]["median_test_ms"]
    return figures | {"jail_minus_subprocess_ms": round(extra, 2)}


def expected(program: int, test: int) -> str:
    """The right output of a program on a test's input."""
    return str(sum(x * x for x in (test, test + 1, test + 2)) + program)


def by_subprocess(programs: list[str], inputs: list[str]) -> list[float]:
    """Milliseconds of each program's tests on average; one interpreter a test."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "solution.py"
        for index, program in enumerate(programs):
            file.write_text(program, encoding="utf-8")
            started = time.perf_counter()
            for test, given in enumerate(inputs):
                command = [sys.executable, str(file)]
                done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=True)
                assert done.stdout.split() == [expected(index, test)]
            samples.append(1000.0 * (time.perf_counter() - started) / len(inputs))
    return samples


def by_fork_and_alarm(programs: list[str], inputs: list[str]) -> list[float]:
    """The same; one forked process a sample, exec and an alarm a test."""
    samples = []
    context = multiprocessing.get_context("fork")
    for index, program in enumerate(programs):
        started = time.perf_counter()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_checked, args=(program, inputs, sender))
        process.start()
        outputs = receiver.recv()
        process.join()
        assert outputs == [expected(index, test) for test in range(len(inputs))]
        samples.append(1000.0 * (time.perf_counter() - started) / len(inputs))
    return samples


def _checked(program: str, inputs: list[str], sender: Any) -> None:
    run_program: Callable[..., None] = builtins.exec
    outputs = []
    for given in inputs:
        sys.stdin, sys.stdout = io.StringIO(given), io.StringIO()
        signal.alarm(ALARM_S)
        run_program(compile(program, "solution", "exec"), {"__name__": "__main__"})
        signal.alarm(0)
        outputs.append(sys.stdout.getvalue().strip())
    sender.send(outputs)
    os._exit(0)


def by_jail(programs: list[str], inputs: list[str]) -> list[float]:
    """The same; our jail with one worker, which is warm."""
    verifier = CodeVerifier(1, CodeConfig())
    try:
        samples = []
        for index, program in enumerate(["print(1)", *programs], start=-1):
            outputs = [expected(index, test) for test in range(len(inputs))]
            started = time.perf_counter()
            verdict = verifier.submit(_answer(program, inputs, outputs)).result(timeout=600)
            assert index < 0 or verdict.score == 1.0, verdict
            samples.append(1000.0 * (time.perf_counter() - started) / len(inputs))
        return samples[1:]
    finally:
        verifier.close()


def _answer(program: str, inputs: list[str], outputs: list[str]) -> Answer:
    return Answer("code", f"```python\n{program}\n```", json.dumps({"inputs": inputs, "outputs": outputs}))


def flood(num_samples: int, loops: float, workers: int, sample_timeout_s: float) -> dict[str, Any]:
    """Wall time of many samples with endless loops, beside the arithmetic, and what became of the workers."""
    inputs = [f"3 {n} {n + 1} {n + 2}\n" for n in range(10)]
    num_loops = round(num_samples * loops)
    config = CodeConfig(timeout_s=min(4.0, sample_timeout_s), sample_timeout_s=sample_timeout_s)
    verifier = CodeVerifier(workers, config)
    try:
        # The rest by itself first: what the arithmetic needs.
        few = [_sample(index, False, inputs) for index in range(50 * workers)]
        [future.result() for future in [verifier.submit(answer) for answer in few[:workers]]]
        started = time.perf_counter()
        [future.result() for future in [verifier.submit(answer) for answer in few]]
        one_sample_s = (time.perf_counter() - started) / len(few)
        before, before_kb = sorted(verifier.pool.pids()), _resident_kb(verifier.pool.pids())
        every = num_samples // max(num_loops, 1)
        samples = [_sample(index, index % every == 0, inputs) for index in range(num_samples)]
        started = time.perf_counter()
        verdicts = [future.result() for future in [verifier.submit(answer) for answer in samples]]
        wall_s = time.perf_counter() - started
        kinds = {kind: sum(v.verdict == kind for v in verdicts) for kind in {v.verdict for v in verdicts}}
        arithmetic_s = num_loops * sample_timeout_s / workers + (num_samples - num_loops) * one_sample_s
        return {
            "bench": "code_flood", "samples": num_samples, "loops": num_loops, "workers": workers,
            "verdicts": kinds, "wall_s": round(wall_s, 1), "arithmetic_s": round(arithmetic_s, 1),
            "wall_over_arithmetic": round(wall_s / arithmetic_s, 2),
            "same_workers": sorted(verifier.pool.pids()) == before,
            "workers_kb": [before_kb, _resident_kb(verifier.pool.pids())],
        }  # fmt: skip
    finally:
        verifier.close()


def _sample(index: int, endless: bool, inputs: list[str]) -> Answer:
    outputs = [expected(index, test) for test in range(len(inputs))]
    return _answer(LOOP if endless else PROGRAM.format(index=index), inputs, outputs)


def _resident_kb(pids: list[int]) -> int:
    """Memory of the workers, together."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
