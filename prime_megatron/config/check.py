"""What single keys cannot say: whether the settings fit each other and the processes. Pure: nothing is started."""

from __future__ import annotations

from prime_megatron.config.algorithm import Estimator, UpdateOrder
from prime_megatron.config.check_algorithm import check_algorithm
from prime_megatron.config.check_health import check_health
from prime_megatron.config.check_log import check_log
from prime_megatron.config.dotted import split
from prime_megatron.config.layout import Backend, check_parallel
from prime_megatron.config.reward_path import check_reward_path
from prime_megatron.config.roles import needs_prm, policy_folder_of, why_no_prm
from prime_megatron.config.rollout import TeachingConfig
from prime_megatron.config.run import TrainConfig
from prime_megatron.config.schedule import check_optimizer
from prime_megatron.config.warn import WARNINGS
from prime_megatron.errors import InputError

__all__ = ["check_parallel", "check_train_config", "needs_prm", "policy_folder_of"]


def check_train_config(
    config: TrainConfig, world_size: int | None = None, backend: Backend | None = None
) -> tuple[str, ...]:
    """Check a training config as a whole.

    Args:
        config: a loaded config.
        world_size: processes; None: launch.nodes * launch.processes_per_node.
        backend: of the collectives; None: not known yet (checked again on the cluster).

    Returns:
        Warnings, one line each: settings that are allowed and perhaps not meant.

    Raises:
        InputError: settings that contradict each other; one line, with the reason.
    """
    world_size = _world_size(config, world_size)
    data_size = check_parallel(config.parallel, world_size, backend)
    _check_run(config)
    _check_held_out_prm(config)
    _check_draw(config)
    _check_rollout(config, world_size)
    _check_verify(config)
    check_algorithm(config)
    check_health(config)
    check_reward_path(config, backend)
    _check_batch(config)
    return tuple(line for warn in WARNINGS for line in warn(config, data_size))


def _world_size(config: TrainConfig, world_size: int | None) -> int:
    return config.launch.nodes * config.launch.processes_per_node if world_size is None else world_size


def _check_run(config: TrainConfig) -> None:
    check_log(config.log, config.run.steps)
    policy_folder_of(config)
    for role in ("policy", "prm", "critic"):
        check_optimizer(f"models.{role}.optimizer", getattr(config.models, role).optimizer)
    if config.eval.every and not config.data.eval and config.eval.suite is None:
        raise InputError("eval.every: there is nothing to evaluate on; set data.eval or eval.suite, or eval.every to 0")
    if config.eval.suite is None and config.eval.suite_data is not None:
        raise InputError("eval.suite_data: is read by eval.suite only; set eval.suite, or leave eval.suite_data out")


def _check_held_out_prm(config: TrainConfig) -> None:
    if config.eval.prm_every and not config.eval.prm_rows:
        raise InputError("eval.prm_every: there is nothing to measure on; set eval.prm_rows, or eval.prm_every to 0")
    if config.eval.prm_rows and not needs_prm(config):
        raise InputError(f"eval.prm_rows: this run has no PRM ({why_no_prm(config)}); leave them out")


def _check_draw(config: TrainConfig) -> None:
    data = config.data
    if data.draw != "teaching":
        if data.teaching != TeachingConfig():
            raise InputError("data.teaching: is read by data.draw teaching only; set data.draw, or leave it out")
        return
    if not data.shuffle:
        raise InputError("data.shuffle: false is the order of the files, and data.draw teaching draws; set one of them")
    if config.rollout.engine == "replay":
        raise InputError("data.draw: teaching draws prompts, and a recording has its own; set it to epochs")


def _check_rollout(config: TrainConfig, world_size: int) -> None:
    rollout = config.rollout
    if rollout.engine == "replay" and rollout.replay is None:
        raise InputError(
            "rollout.engine: replay needs a recording; set rollout.replay to a file made by rollout.record"
        )
    if rollout.engine != "replay" and rollout.replay is not None:
        raise InputError(
            f"rollout.replay: is read by rollout.engine=replay only, and the engine is {rollout.engine}; "
            "set rollout.engine to replay or leave rollout.replay out"
        )
    if rollout.replay is not None and rollout.replay == rollout.record:
        raise InputError("rollout.record: is the file that rollout.replay reads; name another")
    if world_size % rollout.tensor:
        raise InputError(
            f"rollout.tensor: {rollout.tensor} does not divide the {world_size} processes "
            f"({world_size} = {world_size // rollout.tensor} x {rollout.tensor} + {world_size % rollout.tensor}); "
            "every engine replica takes rollout.tensor of them"
        )
    if rollout.tensor % rollout.expert:
        raise InputError(
            f"rollout.expert: {rollout.expert} does not divide rollout.tensor {rollout.tensor}; experts are spread "
            "over a replica's tensor-parallel ranks"
        )
    if rollout.expert > 1 and rollout.engine != "sglang":
        raise InputError(
            f"rollout.expert: is SGLang's, and rollout.engine is {rollout.engine}; set it to 1, or engine to sglang"
        )
    _check_engine(config)
    if rollout.filter.lower > rollout.filter.upper:
        raise InputError(
            f"rollout.filter: lower {rollout.filter.lower} is above upper {rollout.filter.upper}: "
            "no prompt could pass; swap them"
        )


def _check_engine(config: TrainConfig) -> None:
    rollout, per_node = config.rollout, config.launch.processes_per_node
    if rollout.engine in ("sglang", "vllm"):
        if config.launch.nodes > 1 and per_node % rollout.tensor:
            raise InputError(
                f"rollout.tensor: {rollout.tensor} does not divide launch.processes_per_node {per_node}; "
                "an engine replica stays within a node"
            )
        in_process = rollout.engine == "vllm" and rollout.vllm.in_process
        if in_process and rollout.transport in ("broadcast", "disk"):
            raise InputError(
                f"rollout.transport: {rollout.transport} is for an engine in processes of its own, and "
                "rollout.vllm.in_process is true; set it to auto, live or bucket"
            )
        return
    if rollout.tensor > 1:
        raise InputError(
            f"rollout.tensor: the {rollout.engine} engine runs on one process; set rollout.tensor to 1, "
            "or rollout.engine to sglang or vllm"
        )
    if rollout.transport not in ("auto", "live"):
        raise InputError(
            f"rollout.transport: {rollout.transport} is for sglang and vllm; the {rollout.engine} engine's weights are "
            "written in place: leave it out"
        )


def _check_verify(config: TrainConfig) -> None:
    for ability, path in config.verify.custom.items():
        split(path, f"verify.custom.{ability}")


def _check_batch(config: TrainConfig) -> None:
    prompts = config.rollout.prompts_per_step
    counts = {"policy": config.models.policy.num_mini_batches}
    if needs_prm(config) and config.prm.update is not UpdateOrder.none:
        counts["prm"] = config.models.prm.num_mini_batches
    if config.advantage.estimator is Estimator.gae:
        counts["critic"] = config.models.critic.num_mini_batches
    finest = max(counts.values())
    for role, count in counts.items():
        if count > prompts:
            raise InputError(
                f"models.{role}.num_mini_batches: {count} mini-batches of {prompts} prompts "
                "(rollout.prompts_per_step) leave some empty; lower it"
            )
        if finest % count:
            other = next(name for name, value in counts.items() if value == finest)
            raise InputError(
                f"models.{role}.num_mini_batches: {count} does not divide models.{other}.num_mini_batches {finest} "
                f"({finest} = {finest // count} x {count} + {finest % count}): the mini-batches of one role must be "
                "unions of the other's; change one of them"
            )
