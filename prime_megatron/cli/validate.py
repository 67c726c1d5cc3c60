"""prime-megatron validate: what a config means, and whether it can run; starts nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain

from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.cli.preflight import check_folders, check_objective
from prime_megatron.config import ParallelConfig, SftConfig, StageConfig, TrainConfig, UpdateOrder
from prime_megatron.config.check import check_parallel, check_train_config, needs_prm
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.load import dump_yaml, load_stage_config, load_train_config
from prime_megatron.mcore.versions import require_tested
from prime_megatron.plan.fit import CONTEXT_BYTES, check_fit, check_host, device_of, plan_for, read_families
from prime_megatron.run.check_data import check_data
from prime_megatron.run.check_models import check_models
from prime_megatron.verify import check_custom, describe_custom

_EPILOG = """\
examples:
  prime-megatron validate run.yaml
  prime-megatron validate run.yaml parallel.tensor=4 --processes 16
  prime-megatron validate run.yaml --device-memory 79.6GiB

The resolved config goes to standard output; the layout, the memory and the warnings are comments in it, so that
the output is a config file again. The memory needs the models' config.json, no weights.

--device-memory is what the card reports (nvidia-smi, memory.total: an H100 of 80 GB has 81559 MiB = 79.6 GiB), taken as
it is given: 80GiB is 80 x 2^30 bytes, 80GB is 80 x 10^9. Of it 4 GiB are kept for CUDA and NCCL, and a config that
fills more than 95 % of the rest is refused with the keys that would make it fit.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "validate",
        summary="check a config and show what it means; starts nothing",
        description="Check a training, SFT or PRM config and its model folders: no GPU, no process, no weights needed.",
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes of the job (default: launch.nodes x processes_per_node)"
    )
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="memory of one GPU, such as 79.6GiB (default: launch.device_memory)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the resolved config and what it means; 0 when it can run.

    Raises:
        InputError: it cannot.
    """
    require_tested()
    stage = load_stage_config(args.config, args.overrides)
    if stage is not None:
        world_size = _world_size(args.processes, stage)
        warnings = check_stage_config(stage, world_size)
        check_folders(stage, all_here=False)
        check_models(stage, world_size)
        print(dump_yaml(stage), end="")
        first = [_layout(stage.parallel, world_size), *_rows(stage)]
        comments = chain(first, _memory(stage, world_size, args.device_memory))
    else:
        train = load_train_config(args.config, args.overrides)
        world_size = _world_size(args.processes, train)
        warnings = check_train_config(train, world_size)
        check_folders(train, all_here=False)
        check_models(train, world_size)
        check_custom(train.verify.custom)
        check_objective(train)
        print(dump_yaml(train), end="")
        first = [
            _layout(train.parallel, world_size),
            _batch(train),
            *_draws(train),
            *describe_custom(train.verify.custom),
        ]
        comments = chain(first, _memory(train, world_size, args.device_memory))
    for line in comments:
        print(f"# {line}")
    for warning in (*warnings, *check_data(train if stage is None else stage, all_here=False)):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _world_size(processes: int | None, config: TrainConfig | StageConfig) -> int:
    return config.launch.nodes * config.launch.processes_per_node if processes is None else processes


def _layout(parallel: ParallelConfig, world_size: int) -> str:
    data = check_parallel(parallel, world_size)
    text = (
        f"layout: {world_size} processes = data {data} x tensor {parallel.tensor} x pipeline {parallel.pipeline} "
        f"x context {parallel.context}"
    )
    return text + (f"; experts over {parallel.expert}" if parallel.expert > 1 else "")


def _rows(config: StageConfig) -> list[str]:
    """What a supervised run learns and measures."""
    if not isinstance(config, SftConfig):
        return []
    run, data = config.run, config.data
    length = f"{run.steps} steps" if run.steps else f"{run.epochs} epochs, each in the steps that its rows make"
    measured = f"{data.held_out_share:.1%} of the rows" if data.held_out_share else ", ".join(data.held_out)
    when = f", every {config.eval_every} steps" if config.eval_every else ""
    held = f"; loss and perplexity on {measured} before the first step{when} and after the last one" if measured else ""
    learned = "every answer" if data.answers == "all" else "the last answer"
    return [f"{length} of {config.batch_size} rows, {learned} of a chat learned{held}"]


def _draws(config: TrainConfig) -> list[str]:
    """How prompts are drawn, where it is not every one once an epoch."""
    if config.data.draw != "teaching":
        return []
    teaching = config.data.teaching
    rest = f"; one that is solved or hopeless rests {teaching.rest_steps} steps" if teaching.rest_steps else ""
    return [f"prompts: drawn by p (1 - p) of their past accuracy p, at least {teaching.floor}{rest}"]


def _batch(config: TrainConfig) -> str:
    prompts, samples, prm = config.rollout.prompts_per_step, config.rollout.samples_per_prompt, ""
    if needs_prm(config) and config.prm.update is not UpdateOrder.none:
        prm = f", {config.models.prm.num_mini_batches * config.prm.passes} PRM updates"
    return (
        f"step: {prompts} prompts x {samples} responses = {prompts * samples} sequences, "
        f"{config.models.policy.num_mini_batches} policy updates{prm}; {config.run.steps} steps"
    )


def _memory(config: TrainConfig | StageConfig, world_size: int, option: str | None) -> Iterator[str]:
    """The memory lines: every model, then every phase. Raises InputError, after them, where it does not fit."""
    device = device_of(config, option)
    families = read_families(config)
    if isinstance(families, str):
        yield f"memory: not estimated, no folder {families}"
        return
    plan = plan_for(config, families, world_size, device)
    yield "models on one GPU, each on the pipeline stage that holds most of it:"
    for role in plan.roles:
        memory = role.largest
        parts = f"weights {_gib(memory.weights)}"
        if role.model.trained:
            parts += f", gradients {_gib(memory.gradients)}, optimizer {_gib(memory.optimizer)}"
        kind = "trained" if role.model.trained else "frozen"
        yield f"  {role.model.role:<16} {_count(role.num_parameters):>8} parameters, {kind}: {parts}"
    yield "memory of one GPU by phase, on the pipeline stage that needs most:"
    for phase in plan.phases:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in phase.parts.items())
        left = "" if device is None else f", {1 - phase.total / (device.total - CONTEXT_BYTES):>3.0%} left"
        yield f"  {phase.name:<16} {_gib(phase.total):>10}{left}: {parts}"
    yield f"host memory of one rank: {_gib(plan.host.copies)} for models away from the device; " + (
        f"while a checkpoint is written about {_gib(plan.host.saving)} more"
    )
    check_host(config, plan)
    if device is not None:
        check_fit(config, families, world_size, device)
        room = device.total - CONTEXT_BYTES
        yield (
            f"fits: the {plan.peak.name} needs most and leaves {1 - plan.peak.total / room:.0%} of {_gib(room)} "
            f"({device.key} {_gib(device.total)} less {_gib(CONTEXT_BYTES)} for CUDA and NCCL)"
        )
    elif plan.engine is not None and plan.engine.fraction is not None:
        yield "the engine is counted without its KV cache; launch.device_memory or --device-memory says what that gets"


def _gib(num_bytes: float) -> str:
    gib = num_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{num_bytes / 2**20:.1f} MiB"


def _count(params: int) -> str:
    return f"{params / 1e9:.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"
