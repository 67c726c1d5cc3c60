"""prime-megatron jail-check: whether generated programs may run on this machine."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence

from prime_megatron.cli.options import new_verb
from prime_megatron.config import CodeConfig
from prime_megatron.errors import ExitCode
from prime_megatron.verify.code.check import attack, look, refusal
from prime_megatron.verify.code.jail.landlock import holds


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "jail-check",
        summary="try the jail of generated programs on this machine",
        description="Print what the kernel offers, try a few attacks, and say in one line whether code may run here.",
        epilog="example:\n  prime-megatron jail-check\n",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when code may run here, 1 when not."""
    kernel, config = look(), CodeConfig()
    extras = ", ".join(holds(kernel.landlock)) or "reading and writing files only"
    print(f"kernel    {platform.system()} {platform.release()} on {platform.machine()}")
    print(f"landlock  {f'ABI {kernel.landlock}: files, {extras}' if kernel.landlock else 'missing'}")
    print(f"seccomp   {'filters' if kernel.seccomp else 'missing'}")
    problem = refusal(config)
    if problem is None:
        problem = _attacked(attack(config))
    print("code may run here" if problem is None else f"code may not run here: {problem}")
    return ExitCode.DONE if problem is None else ExitCode.FAILED


def _attacked(results: Sequence[tuple[str, bool, str]]) -> str | None:
    for name, held, reason in results:
        print(f"{'held' if held else 'NOT HELD':<9} {name}" + ("" if held else f": {reason}"))
    failed = [name for name, held, _ in results if not held]
    return f"not held: {', '.join(failed)}" if failed else None
