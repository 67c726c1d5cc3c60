"""A reward of one's own, named in the config: ``verify.custom: {ability: "package.module:function"}``.

The function scores one response. It is called with keyword arguments, those of `ARGUMENTS` that it names (all of them
where it takes ``**others``):

    def score(response: str, ground_truth: str, **others) -> float | bool

    response      the response's text
    ground_truth  reward_model.ground_truth of the prompt's row
    prompt        the prompt as the model reads it, chat template included
    data_source   data_source of the row, "" where it has none
    ability       ability of the row
    extra_info    extra_info of the row, a dict; {} where it has none

It returns a number in [0, 1], 1 for a right answer, or a bool. It runs in the verifier's worker processes, never in the
trainer: with the time limit of every answer (verify.timeout_s), no environment variables but those that find Python's
packages, an address space of `MEMORY_BYTES`, and no right to write files or (unless it runs as root) start processes or
threads. A process serves many responses, so a module may load a table once.

Where it fails, the response scores 0, the run goes on, and the failure is counted by kind in
``rollout/verifier_<kind>``: error (it raised), timeout, died (its process ended, twice), wrong_type, not_finite,
out_of_range (what it returned).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from numbers import Real
from typing import Any

from prime_megatron.config.dotted import resolve
from prime_megatron.errors import InputError, RunError
from prime_megatron.verify.answer import CORRECT, NOT_FINITE, OUT_OF_RANGE, PARTIAL, WRONG, WRONG_TYPE, Answer, Verdict
from prime_megatron.verify.pool import WorkerPool
from prime_megatron.verify.process import Grader, WorkerDied, WorkerProcess

ARGUMENTS = ("response", "ground_truth", "prompt", "data_source", "ability", "extra_info")
"""What a reward function may ask for by name."""
MEMORY_BYTES = 8 * 2**30
"""Address space of a process with a custom reward: a module may import torch, which maps gigabytes."""
_BOTH_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def key_of(ability: str) -> str:
    """The config key of an ability's function, for messages."""
    return f"verify.custom.{ability}"


def check_custom(custom: Mapping[str, str]) -> None:
    """Import every reward function of a config here, and see whether it can be called.

    Raises:
        InputError: naming the key, and the module, the name or the argument that is wrong.
    """
    for ability, path in custom.items():
        RewardFunction(path, key_of(ability))


class RewardFunction:
    """A function of the config, resolved and ready to score; what a worker process holds.

    Args:
        path: "package.module:function".
        key: the config's key, for errors.

    Raises:
        InputError: as `config.dotted.resolve`; or the function needs an argument that there is not.
    """

    def __init__(self, path: str, key: str) -> None:
        self._function = resolve(path, key)
        self._arguments = _arguments(self._function, path, key)

    def grade(self, request: Mapping[str, Any]) -> tuple[float, str, str]:
        """(score, verdict, reason) of one response; ``request`` has every one of `ARGUMENTS`. Raises what it raises."""
        return judge(self._function(**{name: request[name] for name in self._arguments}))


class CustomVerifier:
    """Scores one ability with a reward function of the user's, in processes that one can kill.

    Args:
        ability: what it scores.
        path: "package.module:function".
        num_workers, timeout_s: as in WorkerPool.
    """

    def __init__(self, ability: str, path: str, num_workers: int, timeout_s: float) -> None:
        self._grader = Grader(f"the reward {path}", (key_of(ability), path), optional=True)
        self.pool = WorkerPool(num_workers, timeout_s, MEMORY_BYTES, grader=self._grader)

    def submit(self, answer: Answer) -> Future[Verdict]:
        return self.pool.submit({name: getattr(answer, name) for name in ARGUMENTS})

    def truth_problem(self, ground_truth: str) -> str | None:
        """None: what a ground truth has to be is the function's to say."""
        return None

    def try_start(self, timeout_s: float = 120.0) -> None:
        """Start a worker process, as the run will, and end it.

        Raises:
            InputError: the function cannot be loaded there.
        """
        process = WorkerProcess(MEMORY_BYTES, self._grader)
        try:
            process.wait_ready(timeout_s)
        except (RunError, WorkerDied) as failure:
            raise InputError(f"{failure}") from None
        finally:
            process.discard()

    def close(self) -> None:
        self.pool.close()


def judge(value: Any) -> tuple[float, str, str]:
    """(score, verdict, reason) of what a reward function returned."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of numpy's or torch's
        value = value.item()
    if not isinstance(value, Real):
        return 0.0, WRONG_TYPE, f"the reward is a {type(value).__name__}, not a number or a bool"
    score = float(value)
    if not math.isfinite(score):
        return 0.0, NOT_FINITE, f"the reward is {score}"
    if not 0.0 <= score <= 1.0:
        return 0.0, OUT_OF_RANGE, f"the reward is {score:g}, outside [0, 1]"
    return score, CORRECT if score == 1.0 else WRONG if score == 0.0 else PARTIAL, f"the reward is {score:g}"


def _arguments(function: Callable[..., Any], path: str, key: str) -> tuple[str, ...]:
    """The names that the function is called with."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError(
            f"{key}: {path} does not say which arguments it takes; wrap it in a function of Python's"
        ) from None
    for parameter in parameters:
        given = parameter.kind in _BOTH_KINDS and parameter.name in ARGUMENTS
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and not given:
            raise InputError(
                f"{key}: {path} needs {parameter.name!r}; a reward is given {', '.join(ARGUMENTS)}, by name"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ARGUMENTS
    return tuple(parameter.name for parameter in parameters if parameter.name in ARGUMENTS)
