"""prime-megatron slurm: a job script for a config."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config import TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.load import load_train_config
from prime_megatron.errors import InputError

BODY = Path(__file__).with_name("job.sh")
SAVE_S = 180.0
"""Seconds that a save may take after checkpoint.grace_s."""

_DESCRIPTION = """\
Write a SLURM job script for a config: one task a node, each starts launch.processes_per_node processes. The job is
warned before its time is up, saves, and goes back into the queue until the run is done. Submit it where you would run
`prime-megatron train`: relative paths begin there.
"""

_EPILOG = """\
examples:
  prime-megatron slurm run.yaml --dry-run
  prime-megatron slurm run.yaml launch.nodes=8 --time 24:00:00 --partition gpu --output run.sbatch
  sbatch run.sbatch
  examples/slurm/chain.sh 5 run.sbatch     (where requeueing is forbidden: render with --no-requeue)
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "slurm",
        summary="write a SLURM job script for a config",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file of the run, on a file system that all nodes share")
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: CONFIG with .sbatch)")
    parser.add_argument("--dry-run", action="store_true", help="print it, write nothing")
    parser.add_argument("--time", metavar="LIMIT", default="24:00:00", help="of one attempt (default: %(default)s)")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="default: launch.processes_per_node; 0: none")
    parser.add_argument("--container-image", metavar="IMAGE", default="", help="for srun with pyxis")
    parser.add_argument("--container-mounts", metavar="A:B,C:D", default="", help="for srun with pyxis")
    parser.add_argument("--no-requeue", action="store_true", help="for clusters that forbid it: chain jobs instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render; returns the exit code.

    Raises:
        InputError: the config is wrong, or the file exists and is not a job script of ours.
    """
    config = load_train_config(args.config, args.overrides)
    check_train_config(config)
    text = render(config, args)
    if args.dry_run:
        print(text, end="")
        return 0
    path = Path(args.output) if args.output else Path(args.config).with_suffix(".sbatch")
    if path.exists() and "#SBATCH" not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"--output {path}: exists and is no job script; choose another name")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror})") from None
    print(f"{path}: submit it with: sbatch {path}")
    return 0


def render(config: TrainConfig, args: argparse.Namespace) -> str:
    """The job script: directives and settings from the config, then the body that all scripts share (job.sh)."""
    body = BODY.read_text(encoding="utf-8")
    return "\n".join(["#!/usr/bin/env bash", *_directives(config, args), "", *_settings(config, args), "", body])


def _directives(config: TrainConfig, args: argparse.Namespace) -> list[str]:
    gpus = _gpus(config, args)
    # Time for the step in flight, then for the save.
    warning_s = max(300, round(config.checkpoint.grace_s + SAVE_S))
    options = {
        "job-name": config.run.name,
        "nodes": config.launch.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus or None,
        "exclusive": True,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "requeue": not args.no_requeue,
        "no-requeue": args.no_requeue,
        "signal": f"B:{config.checkpoint.signal}@{warning_s}",
        "open-mode": "append",
        "output": f"{config.run.name}-%j.log",
    }
    lines = []
    for name, value in options.items():
        if value is True:
            lines.append(f"#SBATCH --{name}")
        elif value is not None and value is not False:
            lines.append(f"#SBATCH --{name}={value}")
    return lines


def _settings(config: TrainConfig, args: argparse.Namespace) -> list[str]:
    train = ["python", "-m", "prime_megatron", "train", args.config, *args.overrides]
    values = {
        "NODES": config.launch.nodes,
        "GPUS_PER_NODE": _gpus(config, args),
        "STOP_SIGNAL": config.checkpoint.signal,
        "REQUEUE": 0 if args.no_requeue else 1,
        "OUTPUT_DIR": config.run.output_dir,
        "CONTAINER_IMAGE": args.container_image,
        "CONTAINER_MOUNTS": args.container_mounts,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    return [*lines, f"COMMAND=({shlex.join(train)})"]


def _gpus(config: TrainConfig, args: argparse.Namespace) -> int:
    return config.launch.processes_per_node if args.gpus_per_node is None else int(args.gpus_per_node)
