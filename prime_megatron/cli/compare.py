"""prime-megatron compare: two finished evaluations held against each other, question by question."""

from __future__ import annotations

import argparse
from pathlib import Path

from prime_megatron.cli.options import new_verb
from prime_megatron.evaluate.report import print_comparison
from prime_megatron.evaluate.results import compare

_EPILOG = """\
examples:
  prime-megatron compare eval/before eval/after

Both are --output folders of `prime-megatron evaluate` on the same questions. Two models are called different where the
95 % interval of their paired difference does not hold zero.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "compare",
        summary="hold two evaluations against each other",
        description="The paired difference of two evaluations, with its bootstrap interval.",
        epilog=_EPILOG,
    )
    parser.add_argument("first", type=Path, metavar="DIR", help="an evaluation")
    parser.add_argument("second", type=Path, metavar="DIR", help="another one on the same questions")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the differences; 0. Raises InputError as ``compare``."""
    print_comparison(compare(args.first, args.second))
    return 0
