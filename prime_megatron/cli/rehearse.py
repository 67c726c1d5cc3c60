"""prime-megatron rehearse: a layout's ranks built at full size, counted and compared; no GPU, no weights."""

from __future__ import annotations

import argparse
import os
import sys

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.load import load_stage_config, load_train_config
from prime_megatron.errors import InputError
from prime_megatron.plan.fit import read_families

_EPILOG = """\
examples:
  prime-megatron rehearse run.yaml
  prime-megatron rehearse run.yaml parallel.tensor=4 --processes 16
  prime-megatron rehearse run.yaml --no-update
  prime-megatron rehearse run.yaml --ranks all --micro-batches 8

Every distinct rank is built by Megatron with torch's fake process group and fake tensors; its bytes are held against
the memory model's. The reshard plan to the engine is made and every element looked for. One update runs on a few ranks
(one of every pipeline stage, the ends of every other dimension), and what they ask of each other is compared. The model
folders need their config.json only. What it is and is not: docs/rehearse.md.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "rehearse",
        summary="build every distinct rank of a layout at full size, without GPU or weights",
        description="Build a layout's ranks at full size, count them, check the reshard plan, and run an update.",
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file of train, sft or prm")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes of the job (default: launch.nodes x processes_per_node)"
    )
    parser.add_argument("--no-update", action="store_true", help="count and plan only")
    parser.add_argument("--ranks", choices=("few", "all"), default="few", help="which ranks run the update")
    parser.add_argument(
        "--micro-batches", type=int, metavar="N", help="of the update (default: 1, or the pipeline's size)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was built and found; 0 when all of it is as planned.

    Raises:
        InputError: the config cannot run, or a model folder is not there.
        RunError: what was built is not what is planned.
    """
    stage = load_stage_config(args.config, args.overrides)
    config: TrainConfig | StageConfig = load_train_config(args.config, args.overrides) if stage is None else stage
    launch = config.launch
    world_size = launch.nodes * launch.processes_per_node if args.processes is None else args.processes
    if world_size < 1:
        raise InputError(f"--processes: expected a number of 1 or more, got {world_size}")
    if isinstance(config, TrainConfig):
        warnings = check_train_config(config, world_size)
    else:
        warnings = check_stage_config(config, world_size)
    _check_micro_batches(args.micro_batches, config)
    families = read_families(config)
    if isinstance(families, str):
        raise InputError(f"{families}: no such model folder; give one with the model's config.json")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    # Before torch looks for a device: all of this happens on a CPU, on a machine with GPUs, too.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from prime_megatron.cli.worker import quiet_libraries
    from prime_megatron.rehearse.layout import Extent, rehearse

    quiet_libraries()
    extent = Extent(not args.no_update, args.ranks == "all", args.micro_batches)
    for line in rehearse(config, families, world_size, extent):
        print(line, flush=True)
    return 0


def _check_micro_batches(count: int | None, config: TrainConfig | StageConfig) -> None:
    if count is None:
        return
    if count < 1:
        raise InputError(f"--micro-batches: expected a number of 1 or more, got {count}")
    if config.parallel.virtual_pipeline is not None and count % config.parallel.pipeline:
        raise InputError(
            f"--micro-batches: {count} is no multiple of parallel.pipeline {config.parallel.pipeline}, which virtual "
            "stages need"
        )
