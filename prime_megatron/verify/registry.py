"""Which verifier scores which ability, as a value that the run owns."""

import difflib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.verify.answer import FAILURES, Answer, Verdict, Verifier, best_of
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.code.verifier import CodeVerifier
from prime_megatron.verify.custom import CustomVerifier
from prime_megatron.verify.exact import RuleVerifier, exact_match
from prime_megatron.verify.math import MathVerifier
from prime_megatron.verify.pool import Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """num_workers: processes at most of each ability that needs them, in this process's registry.
    timeout_s: wall-clock seconds for one answer in such a process.
    memory_bytes: address space of one math-verify process.
    code: how programs are run and scored.
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
    unavailable: Mapping[str, str] = field(default_factory=dict)
    _warned: set[tuple[str, str]] = field(default_factory=set, repr=False)

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
        return self.require(ability).truth_problem(ground_truth)

    def prove_truth(self, ability: str, ground_truth: str) -> "Future[str | None] | None":
        """Starts to compute a ground truth of ability "math" against itself: why it is not equal to itself, or None.

        None instead of a future: `truth_problem` has told all that there is to tell.
        """
        verifier = self.require(ability)
        return verifier.prove_truth(ground_truth) if isinstance(verifier, MathVerifier) else None

    def runs_programs(self, ability: str) -> bool:
        """Whether answers of the ability are programs that a jail must hold."""
        return isinstance(self.by_ability.get(ability), CodeVerifier)

    def take_usage(self) -> Usage:
        """What the pools did since the last call."""
        pools = [
            v.pool for v in self.by_ability.values() if isinstance(v, (CodeVerifier, MathVerifier, CustomVerifier))
        ]
        return sum((pool.take_usage() for pool in pools), Usage())

    def submit(self, answer: Answer) -> "Future[Verdict]":
        """Starts to score one answer, so that verification overlaps generation.

        Raises InputError for an ability that cannot be scored; the future raises RunError when a verifier cannot
        run at all. A verifier that fails on this one answer gives verdict "error", score 0.
        """
        verifier = self.require(answer.ability)
        truths = (answer.ground_truth, *answer.other_truths)
        futures = [verifier.submit(replace(answer, ground_truth=truth, other_truths=())) for truth in truths]
        future = best_of(futures) if len(futures) > 1 else futures[0]
        future.add_done_callback(lambda done: self._warn(answer.ability, done))
        return future

    def score(self, answers: Iterable[Answer]) -> list[Verdict]:
        """One verdict per answer, in order. Abilities are checked before anything is scored."""
        answers = list(answers)
        for ability in dict.fromkeys(answer.ability for answer in answers):
            self.require(ability)
        return [future.result() for future in [self.submit(answer) for answer in answers]]

    def try_custom(self) -> None:
        """Load every custom reward once in a process of its own, as the run will. Raises InputError where one fails."""
        for verifier in self.by_ability.values():
            if isinstance(verifier, CustomVerifier):
                verifier.try_start()

    def _warn(self, ability: str, done: "Future[Verdict]") -> None:
        """Say the first failure of each kind; the others are counted, not said."""
        if done.cancelled() or done.exception() is not None:
            return
        verdict = done.result()
        if verdict.verdict in FAILURES and (ability, verdict.verdict) not in self._warned:
            self._warned.add((ability, verdict.verdict))
            logger.warning(
                "the %s verifier failed on an answer, which scores 0 (%s): %s", ability, verdict.verdict, verdict.reason
            )

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


def build_verifiers(options: VerifyOptions | None = None, custom: Mapping[str, str] | None = None) -> Verifiers:
    """The built-in abilities (math, exact; code where the machine can hold programs) and those of ``verify.custom``.

    options: limits of the processes. custom: "package.module:function" by ability, see ``verify.custom``; one that
    names a built-in ability takes its place. Nothing is imported or started here.
    """
    options = options or VerifyOptions()
    built_in: dict[str, Verifier] = {
        "exact": RuleVerifier(exact_match),
        "math": MathVerifier(options.num_workers, options.timeout_s, options.memory_bytes),
    }
    own = {
        ability: CustomVerifier(ability, path, options.num_workers, options.timeout_s)
        for ability, path in (custom or {}).items()
    }
    refused = None if "code" in own else refusal(options.code)
    if refused is None:
        built_in["code"] = CodeVerifier(options.num_workers, options.code)
    return Verifiers(built_in | own, {} if refused is None else {"code": refused})


def describe_custom(custom: Mapping[str, str]) -> list[str]:
    """A line for every custom reward; it says so where one takes the place of a built-in ability."""
    built_in = build_verifiers().by_ability
    return [
        f"verify: ability {ability!r} is scored by {path}"
        + (", in place of the built-in one" if ability in built_in else "")
        for ability, path in custom.items()
    ]
