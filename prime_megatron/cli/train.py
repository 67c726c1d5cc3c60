"""prime-megatron train: a PRIME run, from the launcher to the exit code."""

from __future__ import annotations

import argparse
import sys

from prime_megatron.cli.launch import add_launch_options, rendezvous_of, start
from prime_megatron.cli.options import add_config, add_overwrite, new_verb
from prime_megatron.cli.preflight import check_train_inputs
from prime_megatron.cli.worker import is_worker, on_signal, run_worker, world_size
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config

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
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="continue from the newest complete checkpoint, or from this one"
    )
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
    for warning in check_train_config(config):
        print(f"warning: {warning}", file=sys.stderr)
    rendezvous = rendezvous_of(args, config.launch)
    check_train_inputs(config, resume=args.resume, overwrite=args.overwrite)
    return start(
        _command(args),
        lambda: _work(args),
        config.launch,
        rendezvous,
        stop_signal=config.checkpoint.signal,
    )


def _work(args: argparse.Namespace) -> int:
    def body() -> int:
        config = load_train_config(args.config, args.overrides)
        on_signal(config.checkpoint.signal)
        from prime_megatron.device import backend_name
        from prime_megatron.trainer import train

        check_train_config(config, world_size=world_size(), backend=backend_name())

        return train(config, resume=args.resume, overwrite=args.overwrite)

    return run_worker(body)


def _command(args: argparse.Namespace) -> list[str]:
    """A worker's command line."""
    options = [] if args.resume is None else ["--resume", args.resume]
    options += ["--overwrite"] if args.overwrite else []
    return [sys.executable, "-m", "prime_megatron", "train", args.config, *options, *args.overrides]
