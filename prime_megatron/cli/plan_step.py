"""prime-megatron plan-step: the model passes of one training step, what each costs and why; starts nothing."""

from __future__ import annotations

import argparse
import sys

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config
from prime_megatron.step.plan import Pass, StepPlan, plan_step

_EPILOG = """\
examples:
  prime-megatron plan-step run.yaml
  prime-megatron plan-step run.yaml prm.update=before models.policy.num_mini_batches=4

F is one forward pass over the tokens that the filter kept, all models taken as equally large; a backward is 2 F.
"""
_HEADER = ("role", "what", "cost", "why")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "plan-step",
        summary="show what a step runs, its cost and why; starts nothing",
        description="Show what one step of a training config runs and what it leaves out because that is exact.",
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; 0 when the config can run on the processes of its launch section.

    Raises:
        InputError: it cannot.
    """
    config = load_train_config(args.config, args.overrides)
    warnings = check_train_config(config, config.launch.nodes * config.launch.processes_per_node)
    print(table(plan_step(config)))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def table(plan: StepPlan) -> str:
    """The plan as text: a line a pass in the order they run, costs in F, the total last."""
    total = ("total", "", _cost(plan.forwards), "F: one forward over the kept tokens; a backward is 2 F")
    rows = [_HEADER, *(_row(item) for item in plan.passes), total]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{role:<{widths[0]}}  {what:<{widths[1]}}  {cost:>{widths[2]}}  {why}" for role, what, cost, why in rows
    )


def _row(item: Pass) -> tuple[str, str, str, str]:
    why = item.why if item.forwards else f"skipped: {item.why}"
    return item.role, item.what, _cost(item.forwards), why


def _cost(forwards: float) -> str:
    return f"{forwards:.3f}".rstrip("0").rstrip(".") + " F"
