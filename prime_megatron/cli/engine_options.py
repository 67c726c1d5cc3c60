"""Options of the verbs that generate without a trainer: engine, endpoint, grading."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.generate.endpoint import Endpoint
from prime_megatron.generate.gradable import check_gradable
from prime_megatron.generate.questions import Question
from prime_megatron.generate.run import Progress
from prime_megatron.run.offline import OfflineModel
from prime_megatron.verify import Verifiers, VerifyOptions
from prime_megatron.verify.code.check import prove_jail

_TOLD_EVERY_S = 2.0
_TESTS_PER_SAMPLE = 6
"""Slow tests that one response may have before it is ended."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Who generates."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=("embedded", "sglang", "vllm"), default="embedded", help="who generates")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    group.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor-parallel size (sglang, vllm)")
    group.add_argument(
        "--max-concurrent", type=int, default=256, metavar="N", help="sequences decoded together (default: 256)"
    )
    group.add_argument("--memory-fraction", type=float, default=0.85, metavar="F", help="of a GPU's memory")
    group.add_argument("--cache-bytes", type=int, default=2**30, metavar="N", help="KV cache on a CPU (sglang, vllm)")
    group.add_argument("--trust-remote-code", action="store_true", help="let transformers run code of the folder")
    group.add_argument("--template", metavar="HF_FOLDER", help="config and tokenizer of a checkpoint's model")
    group = parser.add_argument_group("endpoint", "a server in place of an engine; MODEL is its name there")
    group.add_argument("--endpoint", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    group.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the key (default: OPENAI_API_KEY)"
    )
    group.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at once (default: 16)")
    group.add_argument("--retries", type=int, default=5, metavar="N", help="of a request that fails (default: 5)")
    group.add_argument("--timeout-s", type=float, default=600.0, metavar="S", help="of a request (default: 600)")


def add_grading_options(parser: argparse.ArgumentParser) -> None:
    """How answers are scored."""
    group = parser.add_argument_group("grading")
    group.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="math and code processes (default: one per core)",
    )
    group.add_argument("--grade-timeout-s", type=float, default=VerifyOptions.timeout_s, metavar="S", help="per answer")
    group.add_argument(
        "--code-timeout-s", type=float, default=10.0, metavar="S", help="per test of a program (default: 10)"
    )
    group.add_argument(
        "--code-jail", choices=("landlock", "none"), default="landlock", help="none: programs run with your rights"
    )


def offline_model(args: argparse.Namespace, folder: str) -> OfflineModel:
    """The options of an engine as a value. Raises InputError: one out of range."""
    for name in ("tensor", "max_concurrent", "cache_bytes"):
        _at_least_one(args, name)
    if not 0 < args.memory_fraction < 1:
        raise InputError(f"--memory-fraction is {args.memory_fraction}; give a share between 0 and 1")
    return OfflineModel(
        folder=folder,
        engine=args.engine,
        dtype=args.dtype,
        tensor=args.tensor,
        max_concurrent=args.max_concurrent,
        trust_remote_code=args.trust_remote_code,
        memory_fraction=args.memory_fraction,
        cache_bytes=args.cache_bytes,
    )


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """The options of an endpoint as a value. Raises InputError: one out of range, a key that is not set."""
    _at_least_one(args, "concurrency")
    if args.retries < 0 or not 0 < args.timeout_s <= 86_400:
        raise InputError("--retries must be 0 or more, --timeout-s above 0 and at most 86400")
    if not args.endpoint.startswith(("http://", "https://")):
        raise InputError(f"--endpoint {args.endpoint!r}: give a URL such as http://127.0.0.1:8000/v1")
    key = os.environ.get(args.api_key_env or "OPENAI_API_KEY", "")
    if args.api_key_env and not key:
        raise InputError(f"--api-key-env {args.api_key_env}: the environment has no such variable, or an empty one")
    return Endpoint(
        url=args.endpoint.rstrip("/"),
        model=args.model,
        key=key,
        concurrency=args.concurrency,
        retries=args.retries,
        timeout_s=args.timeout_s,
    )


def verify_options(args: argparse.Namespace) -> VerifyOptions:
    """The options of grading as a value. Raises InputError: one out of range."""
    if not 0 < args.code_timeout_s <= 3600:
        raise InputError(f"--code-timeout-s is {args.code_timeout_s}; give seconds above 0, at most 3600")
    # A program that nobody learns from may take its time: limits are there for those that never end.
    code = CodeConfig(
        jail=args.code_jail,
        timeout_s=args.code_timeout_s,
        sample_timeout_s=_TESTS_PER_SAMPLE * args.code_timeout_s,
    )
    return VerifyOptions(num_workers=args.workers, timeout_s=args.grade_timeout_s, code=code)


def prepare_grading(questions: Sequence[Question], verifiers: Verifiers, args: argparse.Namespace) -> None:
    """Raises InputError for a question that cannot be scored, and where this machine does not hold programs."""
    if check_gradable(questions, verifiers) and args.code_jail != "none":
        prove_jail(verify_options(args).code)


class Teller:
    """Says on stderr how far a request is, every few seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told_s = -_TOLD_EVERY_S

    def __call__(self, progress: Progress) -> None:
        """A line, at the start, at the end, and every few seconds between."""
        now = time.monotonic()
        if progress.left_s is not None and progress.done < progress.num_blocks and now - self._told_s < _TOLD_EVERY_S:
            return
        self._told_s = now
        left = "" if progress.left_s is None else f"  {_clock(progress.left_s)} left"
        print(f"{self._name}: {progress.done}/{progress.num_blocks} blocks{left}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _at_least_one(args: argparse.Namespace, name: str) -> None:
    if getattr(args, name) < 1:
        raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is needed")
