"""Which verifier scores which ability, as a value that the run owns."""

import collections
import difflib
import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.verify.answer import ERROR, Answer, Verdict, Verifier
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.code.verifier import CodeVerifier, truth_problem
from prime_megatron.verify.exact import RuleVerifier, exact_match
from prime_megatron.verify.math import MathVerifier
from prime_megatron.verify.pool import Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """num_workers: math-verify processes at most, in this process's registry.
    timeout_s: wall-clock seconds for one answer in such a process.
    memory_bytes: address space of one such process.
    code: how programs are run and scored, in num_workers processes of their own.
    """

    num_workers: int = 2
    timeout_s: float = 5.0
    memory_bytes: int = 2 * 2**30
    code: CodeConfig = field(default_factory=CodeConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise InputError(f"verify: num_workers is {self.num_workers}; at least 1 is needed")
        if not 0 < self.timeout_s <= 86_400:
            raise InputError(f"verify: timeout_s is {self.timeout_s}; give seconds above 0, at most 86400")
        if self.memory_bytes < 2**28:
            raise InputError(f"verify: memory_bytes is {self.memory_bytes}; math-verify needs at least 268435456")


@dataclass(frozen=True)
class Verifiers:
    """Verifiers by ability; a context manager. Safe from any thread.

    by_ability: the verifiers. unavailable: abilities that are known, with why they cannot be scored.
    """

    by_ability: Mapping[str, Verifier]
    unavailable: Mapping[str, str]
    _counts: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def require(self, ability: str) -> Verifier:
        """The verifier of an ability. Raises InputError for one that is unknown or not available."""
        verifier = self.by_ability.get(ability)
        if verifier is not None:
            return verifier
        if ability in self.unavailable:
            raise InputError(f"ability {ability!r}: {self.unavailable[ability]}")
        known = sorted([*self.by_ability, *self.unavailable])
        close = difflib.get_close_matches(ability, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown ability {ability!r} (known: {', '.join(known)}){hint}")

    def truth_problem(self, ability: str, ground_truth: str) -> str | None:
        """Why answers cannot be scored against this ground truth; None: they can. Raises InputError as `require`."""
        return truth_problem(ground_truth) if isinstance(self.require(ability), CodeVerifier) else None

    def take_usage(self) -> Usage:
        """What the pools of math and code did since the last call."""
        pools = [v.pool for v in self.by_ability.values() if isinstance(v, (CodeVerifier, MathVerifier))]
        return sum((pool.take_usage() for pool in pools), Usage())

    def submit(self, answer: Answer) -> "Future[Verdict]":
        """Starts to score one answer, so that verification overlaps generation.

        Raises InputError for an ability that cannot be scored; the future raises RunError when a verifier cannot
        run at all. A verifier that fails on this one answer gives verdict "error", score 0.
        """
        future = self.require(answer.ability).submit(answer)
        future.add_done_callback(lambda done: self._count(answer.ability, done))
        return future

    def score(self, answers: Iterable[Answer]) -> list[Verdict]:
        """One verdict per answer, in order. Abilities are checked before anything is scored."""
        answers = list(answers)
        for ability in dict.fromkeys(answer.ability for answer in answers):
            self.require(ability)
        return [future.result() for future in [self.submit(answer) for answer in answers]]

    def counts(self) -> dict[tuple[str, str], int]:
        """How many verdicts so far, by (ability, verdict)."""
        with self._lock:
            return dict(self._counts)

    def _count(self, ability: str, done: "Future[Verdict]") -> None:
        if done.cancelled() or done.exception() is not None:
            return
        verdict = done.result()
        with self._lock:
            self._counts[ability, verdict.verdict] += 1
        if verdict.verdict == ERROR:
            logger.warning("the %s verifier failed on an answer, which scores 0: %s", ability, verdict.reason)

    def close(self) -> None:
        """Ends every process the verifiers started. May be called twice."""
        for verifier in self.by_ability.values():
            verifier.close()

    def __enter__(self) -> "Verifiers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def build_verifiers(options: VerifyOptions | None = None, tasks: Mapping[str, Verifier] | None = None) -> Verifiers:
    """The built-in abilities (math, exact, and code where the machine can hold programs) and a task's own.

    options: limits of the math and code verifiers. tasks: verifiers of further abilities; RuleVerifier makes one from a
    function. Raises InputError when a task takes a name that is taken.
    """
    options = options or VerifyOptions()
    by_ability: dict[str, Verifier] = {
        "exact": RuleVerifier(exact_match),
        "math": MathVerifier(options.num_workers, options.timeout_s, options.memory_bytes),
    }
    refused = refusal(options.code)
    unavailable = {} if refused is None else {"code": refused}
    if refused is None:
        by_ability["code"] = CodeVerifier(options.num_workers, options.code)
    for ability, verifier in (tasks or {}).items():
        if ability in by_ability or ability in unavailable:
            raise InputError(f"a task registers ability {ability!r}, which is built in; give it another name")
        by_ability[ability] = verifier
    return Verifiers(by_ability, unavailable)
