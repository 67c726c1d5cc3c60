"""What single keys cannot say: whether the settings fit each other and the processes. Pure: nothing is started."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Literal

from prime_megatron.config.algorithm import Estimator, KlPlace, PrmLoss, UpdateOrder
from prime_megatron.config.model import ParallelConfig
from prime_megatron.config.run import SftConfig, TrainConfig
from prime_megatron.errors import InputError

Backend = Literal["gloo", "nccl"]
SIBLING_LOSSES = (PrmLoss.dpo, PrmLoss.bon_acc, PrmLoss.bon_rm)


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
    _check_rollout(config, world_size)
    _check_prm(config)
    _check_advantage(config)
    _check_policy(config)
    _check_batch(config)
    return tuple(line for warn in _WARNINGS for line in warn(config, data_size))


def check_sft_config(
    config: SftConfig, world_size: int | None = None, backend: Backend | None = None
) -> tuple[str, ...]:
    """Check a supervised config as a whole; arguments, return and errors as `check_train_config`."""
    data_size = check_parallel(config.parallel, _world_size(config, world_size), backend)
    if config.batch_size < data_size:
        return (f"batch_size {config.batch_size} is below the {data_size} data-parallel ranks: some stay idle",)
    return ()


def needs_prm(config: TrainConfig) -> bool:
    """Whether the run has a PRM at all: process rewards count, or the PRM is the value function."""
    return config.advantage.process_weight > 0 or config.advantage.estimator is Estimator.prime_value


def check_parallel(parallel: ParallelConfig, world_size: int, backend: Backend | None = None) -> int:
    """The data-parallel size of a layout.

    Raises:
        InputError: the layout does not fit the processes or itself.
    """
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    product = f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} = {model_size}"
    if world_size % model_size:
        raise InputError(
            f"parallel: {product} does not divide the {world_size} processes "
            f"({world_size} = {world_size // model_size} x {model_size} + {world_size % model_size}); "
            "change parallel.*, or the number of processes"
        )
    _check_pipeline(parallel)
    _check_experts(parallel, world_size, backend)
    if parallel.sequence and parallel.tensor == 1:
        raise InputError(
            "parallel.sequence: splits activations over the tensor-parallel ranks, and parallel.tensor is 1; "
            "set parallel.tensor above 1 or parallel.sequence to false"
        )
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        raise InputError(
            "parallel.overlap_param_gather: only the distributed optimizer gathers parameters; "
            "set parallel.distributed_optimizer to true"
        )
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        raise InputError(
            "parallel.overlap_param_gather: Megatron overlaps the gather only together with the gradient reduction; "
            "set parallel.overlap_grad_reduce to true"
        )
    return world_size // model_size


def _world_size(config: TrainConfig | SftConfig, world_size: int | None) -> int:
    return config.launch.nodes * config.launch.processes_per_node if world_size is None else world_size


def _check_pipeline(parallel: ParallelConfig) -> None:
    # The role turns on overlapped p2p whenever it interleaves: with megatron-core's batched p2p, two stages of
    # several chunks give wrong gradients without a word. On one stage interleaving has nothing to overlap.
    if (parallel.virtual_pipeline or 1) > 1 and parallel.pipeline == 1:
        raise InputError(
            "parallel.virtual_pipeline: chunks are interleaved over pipeline stages, and parallel.pipeline is 1; "
            "set parallel.pipeline above 1 or leave virtual_pipeline out"
        )
    layers = parallel.pipeline_layers
    if layers is None:
        return
    if len(layers) != parallel.pipeline:
        raise InputError(
            f"parallel.pipeline_layers: {len(layers)} numbers for {parallel.pipeline} pipeline stages; give one a stage"
        )
    if min(layers) < 1:
        raise InputError("parallel.pipeline_layers: every stage needs at least one layer")
    if (parallel.virtual_pipeline or 1) > 1:
        raise InputError(
            "parallel.pipeline_layers: does not say how a stage's layers split over the chunks of virtual_pipeline; "
            "leave one of them out"
        )


def _check_experts(parallel: ParallelConfig, world_size: int, backend: Backend | None) -> None:
    expert_tensor = parallel.expert_tensor or 1
    if parallel.expert > 1 or expert_tensor > 1:
        size = parallel.expert * expert_tensor * parallel.pipeline
        if world_size % size:
            raise InputError(
                f"parallel: expert {parallel.expert} x expert_tensor {expert_tensor} x pipeline {parallel.pipeline} "
                f"= {size} does not divide the {world_size} processes; change parallel.expert"
            )
    if expert_tensor > 1 and backend == "gloo":
        raise InputError(
            f"parallel.expert_tensor: {expert_tensor} needs gathers of uneven sizes, which gloo does not have; "
            "set it to 1 on CPUs"
        )
    if parallel.expert > 1 and parallel.tensor > 1 and not parallel.sequence:
        raise InputError(
            "parallel.expert: with parallel.tensor above 1 megatron-core trains experts only under sequence "
            "parallelism; set parallel.sequence to true"
        )


def _check_run(config: TrainConfig) -> None:
    if config.models.policy.path is None:
        raise InputError("models.policy.path is missing; name the HF folder of the model to train")
    for role in ("policy", "prm", "critic"):
        optimizer = getattr(config.models, role).optimizer
        if optimizer.min_lr > optimizer.lr:
            raise InputError(
                f"models.{role}.optimizer.min_lr: {optimizer.min_lr} is above lr {optimizer.lr}; it is the floor of lr"
            )
    if config.eval.every and not config.data.eval:
        raise InputError("eval.every: there is nothing to evaluate on; set data.eval, or eval.every to 0")
    if not hasattr(signal, f"SIG{config.checkpoint.signal}"):
        raise InputError(
            f"checkpoint.signal: this system has no signal {config.checkpoint.signal!r}; use a name such as USR1"
        )


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
    if rollout.filter.lower > rollout.filter.upper:
        raise InputError(
            f"rollout.filter: lower {rollout.filter.lower} is above upper {rollout.filter.upper}: "
            "no prompt could pass; swap them"
        )


def _check_prm(config: TrainConfig) -> None:
    if not needs_prm(config):
        return
    if config.prm.loss in SIBLING_LOSSES:
        if config.prm.update is not UpdateOrder.reverse:
            raise InputError(
                f"prm.loss: {config.prm.loss} compares the scores of siblings, which are known only once all are "
                f"scored, and prm.update is {config.prm.update}; set prm.update to reverse"
            )
        if config.rollout.samples_per_prompt < 2:
            raise InputError(
                f"prm.loss: {config.prm.loss} compares siblings, and rollout.samples_per_prompt is 1; set it above 1"
            )
    if not config.prm.step_delimiter:
        raise InputError("prm.step_delimiter: is empty; give the text that ends a reasoning step")


def _check_advantage(config: TrainConfig) -> None:
    advantage, samples = config.advantage, config.rollout.samples_per_prompt
    if advantage.estimator in (Estimator.rloo, Estimator.grpo) and samples < 2:
        raise InputError(
            f"advantage.estimator: {advantage.estimator} compares a response with its siblings, and "
            f"rollout.samples_per_prompt is {samples}; set it to at least 2"
        )
    if advantage.estimator is Estimator.prime_value and advantage.process_weight == 0:
        raise InputError(
            "advantage.estimator: prime_value takes its values from the PRM, and advantage.process_weight 0 leaves "
            "the PRM out; set process_weight above 0"
        )
    if advantage.process_weight == 0 and advantage.outcome_weight == 0:
        raise InputError("advantage: process_weight and outcome_weight are both 0: nothing would be learnt; raise one")


def _check_policy(config: TrainConfig) -> None:
    policy = config.policy
    if policy.kl_place is KlPlace.none and policy.kl_coef > 0:
        raise InputError(
            f"policy.kl_coef: {policy.kl_coef} has no effect with policy.kl_place none; "
            "set kl_place to reward or loss, or kl_coef to 0"
        )
    if policy.kl_place is not KlPlace.none and policy.kl_coef == 0:
        raise InputError(
            f"policy.kl_place: {policy.kl_place} with policy.kl_coef 0 runs a reference for nothing; "
            "set kl_coef above 0 or kl_place to none"
        )
    if policy.clip_low >= 1:
        raise InputError(f"policy.clip_low: {policy.clip_low} would clip the ratio at or below 0; keep it under 1")


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


def _warn_sampling(config: TrainConfig, data_size: int) -> list[str]:
    if config.rollout.sampling.top_p == 1:
        return []
    return [
        f"rollout.sampling.top_p {config.rollout.sampling.top_p}: the engine draws from a cut distribution, "
        "the trainer's log-probs are those of the whole one"
    ]


def _warn_filter(config: TrainConfig, data_size: int) -> list[str]:
    rollout = config.rollout
    samples = rollout.samples_per_prompt
    means = [right / samples for right in range(samples + 1)]
    if any(rollout.filter.lower <= mean <= rollout.filter.upper for mean in means):
        return []
    return [
        f"rollout.filter: with {samples} samples of outcome 0 or 1 no mean lies within "
        f"{rollout.filter.lower} to {rollout.filter.upper}: only fractional outcomes can pass"
    ]


def _warn_idle_ranks(config: TrainConfig, data_size: int) -> list[str]:
    finest = max(config.models.policy.num_mini_batches, config.models.prm.num_mini_batches if needs_prm(config) else 1)
    groups = config.rollout.prompts_per_step // finest
    if groups >= data_size:
        return []
    return [
        f"a mini-batch has {groups} prompts for {data_size} data-parallel ranks: siblings stay together, "
        "so some ranks are idle"
    ]


def _warn_frozen(config: TrainConfig, data_size: int) -> list[str]:
    if needs_prm(config) and config.prm.update is UpdateOrder.none and config.models.prm.path is None:
        return [
            "prm.update none with models.prm.path unset: a PRM that starts as its own reference and never learns "
            "rewards nothing"
        ]
    return []


_WARNINGS: tuple[Callable[[TrainConfig, int], list[str]], ...] = (
    _warn_sampling,
    _warn_filter,
    _warn_idle_ranks,
    _warn_frozen,
)
