"""prime-megatron best-of-n: what choosing by the PRM is worth, against votes and chance."""

from __future__ import annotations

import argparse
import json

from prime_megatron.cli.options import new_verb, path_option
from prime_megatron.cli.scoring import check_output
from prime_megatron.evaluate.best_of_n import METHODS, Row, table
from prime_megatron.evaluate.scored import SCORES, candidates, read_scored
from prime_megatron.evaluate.statistics import Interval, differs, powers
from prime_megatron.generate.blocks import whole_file

_DESCRIPTION = """\
Read samples with outcomes and rewards (`generate --grade`, then `score`) and print, for N = 1, 2, 4, ..., the expected
outcome of choosing one of N samples of a prompt

  random    by chance
  majority  the answer that most of them give
  weighted  the same, each vote with the PRM's probability as its weight
  best      the sample that the PRM scores highest
  any       perfectly (pass@N)

Each figure is the mean over subsets of N of a prompt's samples, with its 95 % bootstrap interval over prompts. The last
columns are best less the others, paired by prompt: where zero lies in the interval, the two are not different.
"""

_EPILOG = """\
examples:
  prime-megatron best-of-n scored.jsonl
  prime-megatron best-of-n scored.jsonl --by min-step --output best.json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "best-of-n",
        summary="choose among samples by PRM, majority and chance, and compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("input", metavar="SCORED.jsonl", help="samples with outcome and rewards")
    parser.add_argument(
        "--by", choices=tuple(SCORES), default="total", help="the score to choose by: of the rewards (default: total)"
    )
    parser.add_argument("--ability", default="math", metavar="NAME", help="of rows that name none (default: math)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of drawn subsets (default: 0)")
    parser.add_argument("--output", type=path_option, metavar="OUT.json", help="write the figures, too")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; returns the exit code.

    Raises:
        InputError: rows without what is needed; nothing is written then.
    """
    if args.output is not None:
        check_output(args.output, overwrite=args.overwrite)
    prompts, count = candidates(read_scored(args.input, args.by, args.ability), args.input)
    rows = table(prompts, powers(count), args.seed)
    print(f"{len(prompts)} prompts, {count} samples each, chosen by {args.by}")
    print(as_text(rows))
    if args.output is not None:
        figures = {"num_prompts": len(prompts), "num_samples": count, "by": args.by, "seed": args.seed}
        body = [{"n": row.n, "methods": _plain(row.methods), "best_less": _plain(row.above)} for row in rows]
        with whole_file(args.output) as file:
            file.write(json.dumps(figures | {"rows": body}, indent=2).encode() + b"\n")
    return 0


def as_text(rows: list[Row]) -> str:
    """The table, Markdown."""
    above = list(rows[0].above)
    lines = ["| N | " + " | ".join([*METHODS, *(f"best - {name}" for name in above)]) + " |"]
    lines.append("|---" * (1 + len(METHODS) + len(above)) + "|")
    for row in rows:
        cells = [_cell(row.methods[name]) for name in METHODS] + [_verdict(row.above[name]) for name in above]
        lines.append(f"| {row.n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _verdict(one: Interval) -> str:
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]{'' if differs(one) else ' same'}"


def _plain(intervals: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: dict(vars(one)) for name, one in intervals.items()}
