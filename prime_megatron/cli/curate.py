"""prime-megatron curate STAGE: from raw files to rows that train, a stage at a time."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prime_megatron.cli.curate_models import STAGES as MODEL_STAGES
from prime_megatron.cli.curate_texts import STAGES as TEXT_STAGES
from prime_megatron.cli.options import Subparsers, new_verb, path_option
from prime_megatron.config.load import load_curate_config
from prime_megatron.curate.stage import Files, peak_memory_mib
from prime_megatron.curate.tables import input_files

_OVERRIDE = re.compile(r"[a-z_]+(?:\.[a-z_]+)+=")
STAGES = TEXT_STAGES | MODEL_STAGES
_EPILOG = """\
examples:
  prime-megatron curate read numina/*.parquet --form numina --output runs/data/numina.jsonl
  prime-megatron curate filter runs/data/numina.jsonl --output runs/data/filtered.jsonl filter.choice=keep
  prime-megatron curate dedup runs/data/filtered.jsonl --output runs/data/unique.jsonl
  prime-megatron curate decontaminate runs/data/unique.jsonl --output runs/data/clean.jsonl --suite math --data data
  prime-megatron curate attempts runs/data/clean.jsonl --output runs/data/rl.parquet --model NAME --endpoint URL

Beside OUT lie OUT.dropped.jsonl and OUT.report.json. The same command goes on after an interruption. docs/curate.md.
"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb and its stages; its run is `run`."""
    parser = new_verb(
        subparsers,
        "curate",
        summary="make training rows of raw files: read, filter, dedup, decontaminate, choices, attempts, sft",
        description="The data stages before training. Every stage reads JSON lines or parquet and writes it.",
        epilog=_EPILOG,
    )
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, stage in STAGES.items():
        one = new_verb(stages, name, summary=stage.summary, description=stage.description, epilog="")
        one.add_argument(
            "words", nargs="+", metavar="IN | key=value", help="files with rows; settings as filter.proof=false"
        )
        one.add_argument("--output", type=path_option, required=True, metavar="OUT", help=".jsonl or .parquet")
        one.add_argument("--config", metavar="FILE.yaml", help="settings of all stages")
        one.add_argument("--overwrite", action="store_true", help="replace OUT and forget what is unfinished")
        stage.add_options(one)
    parser.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Run a stage; returns the exit code.

    Raises:
        InputError: before anything is written, for all that can be told then.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start_s = time.monotonic()
    settings = [word for word in args.words if _OVERRIDE.match(word) and not Path(word).exists()]
    config = load_curate_config(args.config, [*settings, *args.overrides])
    files = input_files([word for word in args.words if word not in settings])
    target = Files(args.output)
    target.check(files, overwrite=args.overwrite)
    if args.overwrite:
        target.clear()
    with ExitStack() as stack:
        report = STAGES[args.stage].run(args, config, files, target, stack)
    _print(report)
    seconds = time.monotonic() - start_s
    print(
        f"{report['rows_in']} rows in {seconds:.1f} s ({report['rows_in'] / max(seconds, 1e-9):.0f}/s), peak memory "
        f"{peak_memory_mib():.0f} MiB: {report['kept']} kept -> {args.output}"
    )
    return 0


def _print(report: dict[str, Any]) -> None:
    table = Table("rule", "dropped", "speaks of", "an example")
    for rule in sorted({*report["dropped"], *report["rules"]}, key=lambda rule: -report["dropped"].get(rule, 0)):
        told = report["rules"].get(rule, {"count": 0, "examples": []})
        example = told["examples"][0]["why"] if told["examples"] else ""
        table.add_row(rule, str(report["dropped"].get(rule, 0)), str(told["count"]), escape(example[:60]))
    console = Console(file=sys.stdout)
    if table.row_count:
        console.print(table)
    for name in ("statuses", "passes", "false_solvable", "requests"):
        if name in report:
            lines = Table(name.replace("_", " "), "")
            for key, value in report[name].items():
                lines.add_row(str(key), str(value))
            console.print(lines)
