"""Every family in every layout: logits against transformers, and a 3-step PRIME run against one process.

Tiny random models in float32 on gloo ranks, which are started once for all rows that need as many. A row that fails or
takes too long is named and the others go on. Standard error: rows as they end, then the table. Standard output: one
JSON line.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.job import Job, as_text, work
from tests.support.models import FAMILIES
from tests.support.ranks import run_ranks
from tools.benches import common

Layout = dict[str, Any]
BOUNDS = {"dense": 1e-6, "moe": 1e-5, "metric": 1e-5}
LAYOUTS: dict[str, tuple[str, int, Layout]] = {
    "one": ("1 process", 1, {}),
    "dp2": ("DP2 distopt overlap", 2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "tp2": ("TP2", 2, {"tensor": 2}),
    "tp2-sp": ("TP2+SP", 2, {"tensor": 2, "sequence": True}),
    "pp2": ("PP2", 2, {"pipeline": 2}),
    "pp2-vpp2": ("PP2xVPP2", 2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2": ("CP2 packed", 2, {"context": 2}),
    "ep2": ("EP2", 2, {"expert": 2}),
    "ep2-tp2": ("EP2xTP2 (ETP1)", 2, {"expert": 2, "tensor": 2, "expert_tensor": 1, "sequence": True}),
    "pp4": ("PP4 uneven", 4, {"pipeline": 4, "pipeline_layers": (2, 2, 1, 1)}),
    "tp2-pp2-sp": ("TP2xPP2+SP", 4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}
"""Name of a row's layout -> how the table calls it, processes, parallel.*"""
COLUMNS = {
    "max_logit_difference": "max logit difference",
    "max_logit_error": "from float64",
    "max_metric_difference": "max metric difference",
}
"""Figures of the table."""
QUICK = ("qwen2", "qwen2_tied", "qwen3_moe"), ("one", "tp2-sp", "pp2", "ep2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py parity`."""
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY",
                        help=f"only these: {', '.join(FAMILIES)}")  # fmt: skip
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT",
                        help=f"only these: {', '.join(LAYOUTS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK[0])} at {', '.join(QUICK[1])}")
    parser.add_argument("--logits-only", action="store_true", help="no PRIME runs")
    parser.add_argument("--row-timeout-s", type=float, default=120.0, help="longest that a row may take")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. A row: family, layout, max_logit_difference and max_logit_error (from transformers in float32 and in
    float64), max_metric_difference (null: one process, or failed), worst_metric, error."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes that are about to start
    families, layouts = QUICK if args.quick else (args.families, args.layouts)
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), families, layouts, args.row_timeout_s, trains=not args.logits_only)
    print_table(rows)
    worst = {
        f"max_{kind}": max((row[key] for row in rows if row[key] is not None and _is(row, kind)), default=None)
        for kind, key in (
            ("dense", "max_logit_difference"),
            ("moe", "max_logit_difference"),
            ("metric", "max_metric_difference"),
        )
    }
    failed = sum(row["error"] is not None for row in rows)
    figures = {**worst, "bounds": BOUNDS, "failed": failed, "rows": rows}
    return common.line("parity", torch.device("cpu"), figures, {}, ("megatron-core", "transformers"))


def _is(row: dict[str, Any], kind: str) -> bool:
    return kind == "metric" or moe(row["family"]) == (kind == "moe")


def moe(family: str) -> bool:
    """Whether the family has experts."""
    return "moe" in family or family == "mixtral"


def fits(family: str, layout: Layout) -> bool:
    """Whether megatron-core runs it: experts need experts, and sequence parallelism beside tensor parallelism."""
    if not moe(family):
        return "expert" not in layout
    return "tensor" not in layout or "sequence" in layout


def measure(
    folder: Path, families: Sequence[str], layouts: Sequence[str], timeout_s: float, *, trains: bool = True
) -> list[dict[str, Any]]:
    """One row for each family in each layout that it fits; trains: with PRIME runs."""

    def job(family: str, name: str, label: str, layout: Layout) -> Job:
        return Job(family, label, layout, str(folder / family), str(folder / family / name), timeout_s, trains)

    errors = finish([job(family, "made", "model and rollouts", {}) for family in families], 1, prepare=True)
    jobs = [
        job(family, name, LAYOUTS[name][0], LAYOUTS[name][2])
        for family in families
        for name in layouts
        if fits(family, LAYOUTS[name][2])
    ]
    for world in sorted({LAYOUTS[name][1] for name in layouts}):
        labels = {LAYOUTS[name][0] for name in layouts if LAYOUTS[name][1] == world}
        these = [one for one in jobs if one.label in labels and one.family_at not in errors]
        errors |= finish(these, world, prepare=False)
    nothing = dict.fromkeys((*COLUMNS, "worst_metric"))
    return [
        {
            "family": one.family,
            "layout": one.label,
            **(one.result() or nothing),
            "error": errors.get(one.folder, errors.get(one.family_at)),
        }
        for one in jobs
    ]


def finish(jobs: list[Job], world: int, *, prepare: bool) -> dict[str, str]:
    """Do all jobs on the same ranks, after a failure the rest on new ones. Returns errors by the folder of what failed
    (prepare: the family's)."""
    errors: dict[str, str] = {}
    left = jobs
    while left:
        try:
            run_ranks(work, world, as_text(left), prepare, timeout_s=60.0 + sum(job.timeout_s for job in left))
        except (RuntimeError, TimeoutError) as error:
            bad = next(job for job in left if job.result() is None)
            errors[bad.family_at if prepare else bad.folder] = str(error)
            print(
                f"{bad.family}, {bad.label}: failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr, flush=True
            )
            left = left[left.index(bad) + 1 :]
        else:
            left = []
    return errors


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, on standard error."""
    print(f"| family | layout | {' | '.join(COLUMNS.values())} |\n{'|---' * (len(COLUMNS) + 2)}|", file=sys.stderr)
    for row in rows:
        shown = ["-" if row[key] is None else f"{row[key]:.1e}" for key in COLUMNS]
        shown = shown if row["error"] is None else ["failed"] * len(COLUMNS)
        print(f"| {row['family']} | {row['layout']} | {' | '.join(shown)} |", file=sys.stderr)
