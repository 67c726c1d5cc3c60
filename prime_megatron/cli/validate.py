"""prime-megatron validate: what a config means, and whether it can run; starts nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prime_megatron.cli.memory import RoleMemory, frozen_memory, num_parameters, trained_memory
from prime_megatron.cli.options import add_config, new_verb
from prime_megatron.config import Estimator, KlPlace, ParallelConfig, PrmReference, SftConfig, TrainConfig
from prime_megatron.config.check import check_parallel, check_sft_config, check_train_config, needs_prm
from prime_megatron.config.load import dump_yaml, load_sft_config, load_train_config
from prime_megatron.config.strict_yaml import parse_file
from prime_megatron.run.check_models import check_models

_EPILOG = """\
examples:
  prime-megatron validate run.yaml
  prime-megatron validate run.yaml parallel.tensor=4 --processes 16

The resolved config goes to standard output; the layout, the memory and the warnings are comments in it, so that
the output is a config file again.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "validate",
        summary="check a config and show what it means; starts nothing",
        description="Check a training or SFT config and its model folders: no GPU, no process, no weights needed.",
        epilog=_EPILOG,
    )
    add_config(parser, "YAML file")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes of the job (default: launch.nodes x processes_per_node)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the resolved config and what it means; 0 when it can run.

    Raises:
        InputError: it cannot.
    """
    # A supervised config has `model` where a training config has `models`.
    supervised = "model" in parse_file(args.config).value
    if supervised:
        sft = load_sft_config(args.config, args.overrides)
        world_size = _world_size(args.processes, sft)
        warnings = check_sft_config(sft, world_size)
        check_models(sft, world_size)
        print(dump_yaml(sft), end="")
        comments = [_layout(sft.parallel, world_size), *_sft_memory(sft, world_size)]
    else:
        train = load_train_config(args.config, args.overrides)
        world_size = _world_size(args.processes, train)
        warnings = check_train_config(train, world_size)
        check_models(train, world_size)
        print(dump_yaml(train), end="")
        comments = [_layout(train.parallel, world_size), _batch(train), *_train_memory(train, world_size)]
    for line in comments:
        print(f"# {line}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _world_size(processes: int | None, config: TrainConfig | SftConfig) -> int:
    return config.launch.nodes * config.launch.processes_per_node if processes is None else processes


def _layout(parallel: ParallelConfig, world_size: int) -> str:
    data = check_parallel(parallel, world_size)
    text = (
        f"layout: {world_size} processes = data {data} x tensor {parallel.tensor} x pipeline {parallel.pipeline} "
        f"x context {parallel.context}"
    )
    return text + (f"; experts over {parallel.expert}" if parallel.expert > 1 else "")


def _batch(config: TrainConfig) -> str:
    prompts, samples = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    return (
        f"step: {prompts} prompts x {samples} responses = {prompts * samples} sequences, "
        f"{config.models.policy.num_mini_batches} policy updates; {config.run.steps} steps"
    )


def _sft_memory(config: SftConfig, world_size: int) -> list[str]:
    if not Path(config.model).is_dir():
        return [f"memory: not estimated, no folder {config.model}"]
    params = num_parameters(config.model)
    data = check_parallel(config.parallel, world_size)
    return _table([("model", params, trained_memory(params, config.parallel, data, config.dtype))])


def _train_memory(config: TrainConfig, world_size: int) -> list[str]:
    """The memory lines: roles as the algorithm needs them, the engine's copy last."""
    models, parallel = config.models, config.parallel
    policy = models.policy.path
    if policy is None:
        return ["memory: not estimated, models.policy.path is not set"]
    data = check_parallel(parallel, world_size)
    trained, frozen = {"policy": policy}, {}
    prm = models.prm.path or policy
    if needs_prm(config):
        trained["PRM"] = prm
        if config.prm.reference is PrmReference.freeze:
            frozen["reference"] = models.reference or prm
    if config.policy.kl_place is not KlPlace.none and "reference" not in frozen:
        frozen["reference"] = models.reference or policy
    if config.advantage.estimator is Estimator.gae:
        trained["critic"] = models.critic.path or policy
    for folder in sorted({*trained.values(), *frozen.values()}):
        if not Path(folder).is_dir():
            return [f"memory: not estimated, no folder {folder}"]
    rows: list[tuple[str, int, RoleMemory]] = []
    for name, folder in trained.items():
        params = num_parameters(folder)
        rows.append((name, params, trained_memory(params, parallel, data, models.dtype)))
    for name, folder in frozen.items():
        params = num_parameters(folder)
        rows.append((name, params, frozen_memory(params, parallel.tensor * parallel.pipeline, models.dtype)))
    params = num_parameters(policy)
    dtype = config.rollout.dtype or models.dtype
    rows.append(("engine", params, frozen_memory(params, config.rollout.tensor, dtype)))
    return _table(rows)


def _table(rows: list[tuple[str, int, RoleMemory]]) -> list[str]:
    lines = ["memory per rank, roughly, without activations and KV cache:"]
    for name, params, memory in rows:
        parts = f"weights {_gib(memory.weights_bytes)}"
        if memory.gradients_bytes:
            parts += f", gradients {_gib(memory.gradients_bytes)}, optimizer {_gib(memory.optimizer_bytes)}"
        lines.append(f"  {name:<10} {_count(params):>7} parameters: {parts}")
    lines.append(f"  {'together':<10} {_gib(sum(memory.total_bytes for _, _, memory in rows))}")
    return lines


def _gib(num_bytes: float) -> str:
    gib = num_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{num_bytes / 2**20:.1f} MiB"


def _count(params: int) -> str:
    return f"{params / 1e9:.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"
