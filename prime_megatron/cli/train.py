"""prime-megatron train: a PRIME run, from the launcher to the exit code."""

from __future__ import annotations

import argparse
import os
import sys

from prime_megatron.cli.launch import add_launch_options, rendezvous_of, start
from prime_megatron.cli.options import add_config, add_overwrite, add_resume, new_verb
from prime_megatron.cli.preflight import check_train_inputs, says_done
from prime_megatron.cli.srun import place_of_rank
from prime_megatron.cli.worker import is_worker, run_worker, worker_command, world_size
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config
from prime_megatron.errors import ExitCode

_DESCRIPTION = """\
Train a policy with PRIME. Without a launcher around it, this command starts launch.nodes x
launch.processes_per_node processes by itself; under torchrun or srun (RANK set) it is one of them.
"""

_EPILOG = """\
examples:
  prime-megatron train run.yaml
  prime-megatron train run.yaml run.seed=1 run.output_dir=runs/seed1
  prime-megatron train run.yaml parallel.tensor=2 parallel.pipeline=2 launch.processes_per_node=4
  prime-megatron train run.yaml --resume auto
  torchrun --nproc-per-node 8 -m prime_megatron train run.yaml
  prime-megatron train run.yaml launch.nodes=2 launch.processes_per_node=8 --rdzv-endpoint node0:29400
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "train",
        summary="train a policy with PRIME",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file; `prime-megatron validate CONFIG` explains it")
    add_resume(parser)
    add_overwrite(parser)
    add_launch_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Launch, or be a rank; returns the exit code.

    Raises:
        InputError: before anything is started or written.
    """
    if is_worker():
        return _work(args)
    config = load_train_config(args.config, args.overrides)
    warnings = check_train_config(config)
    place = place_of_rank(config.launch, args.rdzv_endpoint)
    if place is not None:
        os.environ.update(place)
        return _work(args)
    rendezvous = rendezvous_of(args, config.launch)
    if says_done(config, args.resume):
        return ExitCode.DONE
    check_train_inputs(config, resume=args.resume, overwrite=args.overwrite)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return start(
        worker_command("train", args),
        lambda: _work(args),
        config.launch,
        rendezvous,
        stop_signal=config.checkpoint.signal,
    )


def _work(args: argparse.Namespace) -> int:
    def body() -> int:
        config = load_train_config(args.config, args.overrides)
        from prime_megatron.device import backend_name
        from prime_megatron.trainer import train

        check_train_config(config, world_size=world_size(), backend=backend_name())

        return train(config, resume=args.resume, overwrite=args.overwrite)

    return run_worker(body)
