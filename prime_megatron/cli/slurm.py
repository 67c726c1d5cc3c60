"""prime-megatron slurm: a job script for a config."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from prime_megatron.cli.options import add_config, check_output_file, new_verb, path_option
from prime_megatron.config import PrmConfig, StageConfig, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.load import dump_yaml, load_stage_config, load_train_config
from prime_megatron.errors import InputError
from prime_megatron.slurm.script import Job, gpus_per_node, render

RESOLVED = "# What the job script beside this file runs; written by `prime-megatron slurm`."
"""First line of the resolved config: only such a file is ever replaced."""

SCRIPT = "prime_megatron.slurm.attempt"
"""In every job script: only such a one is ever replaced."""

_DESCRIPTION = """\
Write a SLURM job script for a config of train, sft or prm, and the resolved config beside it: one task a node, each
starts launch.processes_per_node processes. The job is warned before its time is up, saves, and goes back into the queue
until the run is done. Submit it where you would run `prime-megatron train`: relative paths begin there. docs/slurm.md
tells what happens when.
"""

_EPILOG = """\
examples:
  prime-megatron slurm run.yaml --dry-run
  prime-megatron slurm run.yaml launch.nodes=8 --time 24:00:00 --sbatch partition=gpu --output run.sbatch
  prime-megatron slurm run.yaml --setup 'module load cuda' --sbatch qos=long --sbatch mail-type=END --check
  prime-megatron slurm run.yaml --gpus-per-node 0 --time 2:00:00     (a run on CPUs)
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
    add_config(parser, "YAML file of train, sft or prm, on a file system that all nodes share")
    parser.add_argument(
        "--output", metavar="FILE", type=path_option, help="where to write it (default: CONFIG with .sbatch)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print it, write nothing")
    parser.add_argument("--check", action="store_true", help="ask `sbatch --test-only` about what was written")
    parser.add_argument("--time", metavar="LIMIT", default="24:00:00", help="of one attempt (default: %(default)s)")
    parser.add_argument(
        "--warning",
        type=int,
        metavar="S",
        help="seconds before the limit (default: checkpoint.grace_s + 180, from 300)",
    )
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any option of sbatch, again for each"
    )
    parser.add_argument("--gpus-per-node", metavar="[TYPE:]N", help="default: launch.processes_per_node; 0: none")
    parser.add_argument(
        "--setup", metavar="LINES|FILE", default="", help="shell lines before the run: modules, conda, a venv"
    )
    parser.add_argument("--python", default=sys.executable, help="the nodes' Python (default: the one that runs this)")
    parser.add_argument("--container-image", metavar="IMAGE", default="", help="for srun with pyxis")
    parser.add_argument("--container-mounts", metavar="A:B,C:D", default="", help="for srun with pyxis")
    parser.add_argument("--no-requeue", action="store_true", help="for clusters that forbid it: chain jobs instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render; returns the exit code.

    Raises:
        InputError: the config or an option is wrong, or a file exists that is not ours to replace.
    """
    stage = load_stage_config(args.config, args.overrides)
    config = load_train_config(args.config, args.overrides) if stage is None else stage
    for warning in _check(config):
        print(f"warning: {warning}", file=sys.stderr)
    path = args.output if args.output else Path(args.config).with_suffix(".sbatch")
    resolved = path.with_suffix(".resolved.yaml")
    text = render(config, _job(args, _verb(config), resolved))
    if args.dry_run:
        print(text, end="")
        return 0
    for file, ours in ((path, SCRIPT), (resolved, RESOLVED)):
        _check_replaced(file, ours)
    _write(path, text)
    _write(resolved, f"{RESOLVED}\n{dump_yaml(config)}")
    if args.check:
        print(ask_sbatch(path))
    print(f"{path}: submit it with: sbatch {shlex.quote(str(path))}")
    gpus = gpus_per_node(config, args.gpus_per_node)
    if args.gpus_per_node is None:
        print(f"it asks for {gpus} GPUs a node (launch.processes_per_node); for a run on CPUs give --gpus-per-node 0")
    return 0


def _check(config: TrainConfig | StageConfig) -> tuple[str, ...]:
    return check_stage_config(config) if isinstance(config, StageConfig) else check_train_config(config)


def _verb(config: TrainConfig | StageConfig) -> str:
    if isinstance(config, TrainConfig):
        return "train"
    return "prm" if isinstance(config, PrmConfig) else "sft"


def _job(args: argparse.Namespace, verb: str, resolved: Path) -> Job:
    sbatch: dict[str, str | None] = {"partition": args.partition, "account": args.account}
    sbatch = {key: value for key, value in sbatch.items() if value is not None}
    for word in args.sbatch:
        key, equals, value = word.lstrip("-").partition("=")
        if not key:
            raise InputError(f"--sbatch {word!r}: write KEY=VALUE, such as qos=long")
        sbatch[key] = value if equals else None
    setup = Path(args.setup).read_text(encoding="utf-8") if os.path.isfile(args.setup) else args.setup
    return Job(
        verb=verb,
        config_path=str(resolved),
        python=args.python,
        time=args.time,
        warning_s=args.warning,
        gpus=args.gpus_per_node,
        requeue=not args.no_requeue,
        sbatch=sbatch,
        setup=setup,
        container_image=args.container_image,
        container_mounts=args.container_mounts,
    )


def _check_replaced(path: Path, ours: str) -> None:
    check_output_file(path, "--output", overwrite=True)
    if path.exists() and ours not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"--output {path}: exists and was not written by this command; choose another --output")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror})") from None


def ask_sbatch(path: Path) -> str:
    """What `sbatch --test-only` says of a script.

    Raises:
        InputError: there is no sbatch, or it refuses the script; in its own words.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise InputError("--check: there is no sbatch here; run it on a login node")
    done = subprocess.run([sbatch, "--test-only", str(path)], capture_output=True, text=True, timeout=120, check=False)
    said = " ".join((done.stderr or done.stdout).split())
    if done.returncode != 0:
        raise InputError(f"--check: {path}: {said}")
    return said
