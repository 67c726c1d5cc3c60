"""Ability "code": the program in a response is run against the tests in the ground truth."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from prime_megatron.config import CodeConfig
from prime_megatron.verify.answer import NO_CODE, Answer, Verdict, finished
from prime_megatron.verify.code.extract import extract_code
from prime_megatron.verify.code.jail.truth import parse_truth
from prime_megatron.verify.pool import WorkerPool
from prime_megatron.verify.process import Grader, WorkerProcess

START_FILE = Path(__file__).parent / "jail" / "start.py"
_NAME = "the code verifier"
_GRACE_S = 60.0
"""Beyond a sample's own limit: for zygotes that have to be started again."""
_CLEAN_S = 5.0


class CodeWorker(WorkerProcess):
    """A worker of the jail (jail.worker) and the scratch folder of its programs, which goes when it goes."""

    def __init__(self, config: CodeConfig) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="prime-code-"))
        settings = {
            "scratch": str(self._scratch),
            "jail": config.jail,
            "score": config.score,
            "timeout_s": config.timeout_s,
            "sample_timeout_s": config.sample_timeout_s,
            "memory_bytes": config.memory_bytes,
            "output_bytes": config.output_bytes,
        }
        super().__init__(config.memory_bytes, Grader(_NAME, (json.dumps(settings),), file=START_FILE))

    def discard(self) -> None:
        super().discard()
        # The zygote and its child follow their worker within moments; until then one may still write.
        deadline_s = time.monotonic() + _CLEAN_S
        while self._scratch.exists() and time.monotonic() < deadline_s:
            shutil.rmtree(self._scratch, ignore_errors=True)
            if self._scratch.exists():
                time.sleep(0.01)


class CodePool(WorkerPool):
    """Workers of the jail; a request is {"code": ..., "ground_truth": ...}."""

    def __init__(self, num_workers: int, config: CodeConfig) -> None:
        super().__init__(num_workers, config.sample_timeout_s + _GRACE_S, config.memory_bytes, grader=Grader(_NAME))
        self._config = config

    def new_process(self) -> WorkerProcess:
        return CodeWorker(self._config)

    def num_tests(self, reply: Mapping[str, Any]) -> int:
        return int(reply["num_tests"])


class CodeVerifier:
    """Scores programs; no process starts before one has to run.

    A response without a fenced block of Python gets "no_code". Else the verdict is "correct" where all tests pass, or
    what went wrong in the first test that does not: "wrong", "exception", "crashed", "time_limit", "memory_limit",
    "output_limit". The score follows `config.score`. "error" is a failure of the verifier: it scores 0.

    num_workers: processes at most, each runs one test at a time.
    """

    def __init__(self, num_workers: int, config: CodeConfig) -> None:
        self.pool = CodePool(num_workers, config)

    def submit(self, answer: Answer) -> "Future[Verdict]":
        code = extract_code(answer.response)
        if code is None:
            return finished(Verdict(0.0, NO_CODE, "no complete fenced block of Python"))
        return self.pool.submit({"code": code, "ground_truth": answer.ground_truth})

    def truth_problem(self, ground_truth: str) -> str | None:
        return truth_problem(ground_truth)

    def close(self) -> None:
        self.pool.close()


def truth_problem(ground_truth: str) -> str | None:
    """Why programs cannot be tested against this ground truth, in one line; None: they can."""
    try:
        parse_truth(ground_truth)
    except ValueError as problem:
        return str(problem).replace("\n", " ")
    return None
