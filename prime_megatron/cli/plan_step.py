"""prime-megatron plan-step: the passes of one training step and the models of the run, each with its reason; starts
nothing."""

from __future__ import annotations

import argparse
import sys

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config import Offload, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config
from prime_megatron.config.reward_path import describe_reward_path
from prime_megatron.plan.fit import read_families
from prime_megatron.plan.memory import plan_memory
from prime_megatron.plan.roles import RoleMemory
from prime_megatron.step.moves import EVERYTHING, OPTIMIZER_STATE, WEIGHTS, Move, moves
from prime_megatron.step.plan import Model, Pass, StepPlan, plan_step

_EPILOG = """\
examples:
  prime-megatron plan-step run.yaml
  prime-megatron plan-step run.yaml prm.update=before models.policy.num_mini_batches=4

F is one forward pass over the tokens that the filter kept, all models taken as equally large; a backward is 2 F.
"""
_HEADER = ("role", "what", "cost", "why")
_MODELS_HEADER = ("model", "trained", "folder", "why")
_MOVES_HEADER = ("move", "what", "to", "size", "beside")


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
    world_size = config.launch.nodes * config.launch.processes_per_node
    warnings = check_train_config(config, world_size)
    plan = plan_step(config)
    print(table(plan), models_table(plan), sep="\n\n")
    if config.parallel.offload is not Offload.none:
        print(moves_table(config, world_size), end="\n\n")
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


def moves_table(config: TrainConfig, world_size: int) -> str:
    """The copies between device and host of a rank in a step, in their order, and what is computed meanwhile. Sizes are
    those of the pipeline stage that holds most, where the models' config.json are there."""
    families = read_families(config)
    sizes: dict[str, RoleMemory] | None = None
    if not isinstance(families, str):
        plan = plan_memory(config, families, world_size, None)
        sizes = {role.model.role: role.largest for role in plan.roles}
    rows = [_MOVES_HEADER]
    for move in moves(config):
        size = "" if sizes is None else f"{_bytes(move, sizes[move.role]) / 2**30:.2f} GiB"
        rows.append((move.role, move.what, move.to, size, move.beside))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{role:<{widths[0]}}  {what:<{widths[1]}}  {to:<{widths[2]}}  {size:>{widths[3]}}  {beside}"
        for role, what, to, size, beside in rows
    ]
    return "\n".join(lines)


def _bytes(move: Move, memory: RoleMemory) -> float:
    parts = {WEIGHTS: memory.weights, OPTIMIZER_STATE: memory.optimizer}
    return parts[WEIGHTS] + parts[OPTIMIZER_STATE] if move.what == EVERYTHING else parts[move.what]


def _model_row(model: Model) -> tuple[str, str, str, str]:
    return model.role, "trained" if model.trained else "frozen", model.folder, model.why


def _row(item: Pass) -> tuple[str, str, str, str]:
    why = item.why if item.forwards else f"skipped: {item.why}"
    return item.role, item.what, _cost(item.forwards), why


def _cost(forwards: float) -> str:
    return f"{forwards:.3f}".rstrip("0").rstrip(".") + " F"
