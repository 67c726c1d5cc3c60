"""prime-megatron plan-step: the passes of one training step and the models of the run, each with its reason; starts
nothing."""

from __future__ import annotations

import argparse
import sys

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config
from prime_megatron.config.reward_path import describe_reward_path
from prime_megatron.step.plan import Model, Pass, StepPlan, plan_step

_EPILOG = """\
examples:
  prime-megatron plan-step run.yaml
  prime-megatron plan-step run.yaml prm.update=before models.policy.num_mini_batches=4

F is one forward pass over the tokens that the filter kept, all models taken as equally large; a backward is 2 F.
"""
_HEADER = ("role", "what", "cost", "why")
_MODELS_HEADER = ("model", "trained", "folder", "why")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "plan-step",
        summary="show what a step runs and with which models; starts nothing",
        description="Show what one step of a training config runs, what it leaves out because that is exact, and which "
        "models the run builds.",
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tables and how advantages are made; 0 when the config can run on the processes of its launch section.

    Raises:
        InputError: it cannot.
    """
    config = load_train_config(args.config, args.overrides)
    warnings = check_train_config(config, config.launch.nodes * config.launch.processes_per_node)
    plan = plan_step(config)
    print(table(plan), models_table(plan), sep="\n\n")
    print(describe_reward_path(config))
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


def models_table(plan: StepPlan) -> str:
    """The models as text: a line a model, whether it is trained, the folder that it starts from, and why."""
    rows = [_MODELS_HEADER, *(_model_row(model) for model in plan.models)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join((*(f"{row[i]:<{widths[i]}}" for i in range(3)), row[3])) for row in rows)


def _model_row(model: Model) -> tuple[str, str, str, str]:
    return model.role, "trained" if model.trained else "frozen", model.folder, model.why


def _row(item: Pass) -> tuple[str, str, str, str]:
    why = item.why if item.forwards else f"skipped: {item.why}"
    return item.role, item.what, _cost(item.forwards), why


def _cost(forwards: float) -> str:
    return f"{forwards:.3f}".rstrip("0").rstrip(".") + " F"
