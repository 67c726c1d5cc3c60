"""What the two converters share: options, progress with bytes and time left, one error line and exit code 2."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from prime_megatron.convert.target import ConversionPlan, OnBytes
from prime_megatron.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Conversion(Protocol):
    """Either direction."""

    target: Path
    changes: tuple[str, ...]

    def plan(self) -> ConversionPlan: ...

    def run(self, on_bytes: OnBytes) -> None: ...

    def verify(self, on_bytes: OnBytes) -> str: ...


def make_parser(description: str, source: str, target: str) -> argparse.ArgumentParser:
    """The options of both directions."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("source", type=Path, metavar="SOURCE", help=source)
    parser.add_argument("target", type=Path, metavar="TARGET", help=f"{target}; must not exist, or be empty")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="dtype of the output (default: the source's)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_argument("--verify", action="store_true", help="read both folders again, by other code, and compare")
    return parser


def convert(args: argparse.Namespace, make: Callable[[], Conversion]) -> int:
    """ConversionPlan, convert and verify as the options ask; returns the exit code."""
    try:
        conversion = make()
        plan = conversion.plan()
        print_plan(plan, args.source, args.target)
        if args.dry_run:
            return 0
        with Progress("converted", plan.num_bytes) as progress:
            conversion.run(progress.add)
        for change in conversion.changes:
            print(change)
        if args.verify:
            with Progress("verified", plan.num_bytes) as progress:
                said = conversion.verify(progress.add)
            print(f"verified: {said}")
        print(f"written: {args.target}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def print_plan(plan: ConversionPlan, source: Path, target: Path) -> None:
    """What will be done, on standard output."""
    print(f"{source} -> {target}")
    print(
        f"{plan.architecture}: {plan.num_params:,} parameters in {plan.num_tensors:,} tensors, {', '.join(plan.dtypes)}"
    )
    print(f"{plan.num_bytes:,} bytes into {len(plan.files)} file(s); {plan.free_bytes:,} bytes free")


class Progress:
    """Bytes done, rate and time left on standard error: one line on a terminal, else one every 5 s."""

    def __init__(self, verb: str, total_bytes: int) -> None:
        self.verb, self.total_bytes, self.done_bytes = verb, total_bytes, 0
        self._live = sys.stderr.isatty()
        self._begin = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self._show(time.monotonic())
        if self._live:
            print(file=sys.stderr)

    def add(self, num_bytes: int) -> None:
        """So many more are done."""
        self.done_bytes += num_bytes
        now = time.monotonic()
        if now - self._shown > (0.2 if self._live else 5.0):
            self._shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        spent_s = max(now - self._begin, 1e-6)
        rate = self.done_bytes / spent_s
        left_s = (self.total_bytes - self.done_bytes) / max(rate, 1.0)
        share = 100 * self.done_bytes / max(self.total_bytes, 1)
        text = (
            f"{self.verb} {self.done_bytes:,} of {self.total_bytes:,} bytes ({share:.0f} %), "
            f"{rate / 1e6:.0f} MB/s, {spent_s:.0f} s, {left_s:.0f} s left"
        )
        print(f"\r{text}  " if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)
