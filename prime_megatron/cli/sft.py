"""prime-megatron sft: supervised fine-tuning, the warm-up before PRIME."""

from __future__ import annotations

import argparse
import os
import sys

from prime_megatron.cli.launch import add_launch_options, rendezvous_of, start
from prime_megatron.cli.options import add_config, add_overwrite, add_resume, new_verb
from prime_megatron.cli.preflight import check_stage_inputs, says_done
from prime_megatron.cli.srun import place_of_rank
from prime_megatron.cli.worker import is_worker, run_worker, worker_command, world_size
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.load import load_sft_config
from prime_megatron.errors import ExitCode

_EPILOG = """\
examples:
  prime-megatron sft sft.yaml
  prime-megatron sft sft.yaml run.steps=500 optimizer.lr=3e-5 --overwrite
  prime-megatron sft sft.yaml --resume auto
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "sft",
        summary="warm a model up by supervised fine-tuning",
        description="Fine-tune a model on chats or prompt and response pairs; writes an HF folder.",
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
    config = load_sft_config(args.config, args.overrides)
    for warning in check_stage_config(config):
        print(f"warning: {warning}", file=sys.stderr)
    place = place_of_rank(config.launch, args.rdzv_endpoint)
    if place is not None:
        os.environ.update(place)
        return _work(args)
    rendezvous = rendezvous_of(args, config.launch)
    if says_done(config, args.resume):
        return ExitCode.DONE
    check_stage_inputs(config, resume=args.resume, overwrite=args.overwrite)
    command = worker_command("sft", args)
    return start(command, lambda: _work(args), config.launch, rendezvous, stop_signal=config.checkpoint.signal)


def _work(args: argparse.Namespace) -> int:
    def body() -> int:
        config = load_sft_config(args.config, args.overrides)
        check_stage_config(config, world_size=world_size())
        from prime_megatron.sft import train_sft

        return train_sft(config, resume=args.resume, overwrite=args.overwrite)

    return run_worker(body)
