"""Checks as those of `check`, of runs that train one model on rows and of scoring."""

from __future__ import annotations

from prime_megatron.config.check_algorithm import check_objective_keys
from prime_megatron.config.check_kind import HEAD_LOSSES
from prime_megatron.config.check_log import check_log
from prime_megatron.config.layout import Backend, check_parallel
from prime_megatron.config.prm_run import PrmConfig, ScoreConfig
from prime_megatron.config.run import StageConfig
from prime_megatron.config.schedule import check_optimizer, warn_schedule
from prime_megatron.config.sft_run import SftConfig
from prime_megatron.errors import InputError


def check_stage_config(
    config: StageConfig, world_size: int | None = None, backend: Backend | None = None
) -> tuple[str, ...]:
    """Check a config of one model on rows as a whole; arguments, return and errors as `check_train_config`."""
    started = config.launch.nodes * config.launch.processes_per_node
    data_size = check_parallel(config.parallel, started if world_size is None else world_size, backend)
    if isinstance(config, PrmConfig):
        if config.prm.loss in HEAD_LOSSES:
            raise InputError(
                f"prm.loss: {config.prm.loss} is of a PRM with a head, and this verb trains an implicit one; set it to "
                "ce, or train the head in a run (prm.kind head)"
            )
        check_objective_keys(config.prm)
        if config.prm.compares_siblings and config.data.group_size < 2:
            raise InputError(f"prm.loss: {config.prm.loss} compares siblings; set data.group_size above 1")
        if config.eval_every and not config.data.held_out:
            raise InputError("eval_every: there is nothing to measure on; set data.held_out, or eval_every to 0")
    if isinstance(config, SftConfig):
        _check_sft(config)
    check_log(config.log, config.run.steps)
    check_optimizer("optimizer", config.optimizer)
    warnings = warn_schedule("optimizer", config.optimizer, config.run.steps) if config.run.steps else []
    if config.batch_size < data_size:
        warnings.append(f"batch_size {config.batch_size} is below the {data_size} data-parallel ranks: some stay idle")
    return tuple(warnings)


def _check_sft(config: SftConfig) -> None:
    run, data = config.run, config.data
    if bool(run.steps) == bool(run.epochs):
        why = f"is given beside run.steps {run.steps}" if run.steps else "neither it nor run.steps is given"
        raise InputError(f"run.epochs: {why}; set one of them, which says how long the run is")
    if data.held_out and data.held_out_share:
        raise InputError("data.held_out_share: is given beside data.held_out; set one of them")
    if config.eval_every and not data.held_out and not data.held_out_share:
        raise InputError(
            "eval_every: there is nothing to measure on; set data.held_out or data.held_out_share, or eval_every to 0"
        )


def check_score_config(config: ScoreConfig, world_size: int | None = None, backend: Backend | None = None) -> None:
    """Whether the layout of a scoring verb fits its processes; arguments and errors as `check_train_config`."""
    check_parallel(config.roles_parallel(), config.processes if world_size is None else world_size, backend)


def stage_folders(config: StageConfig) -> tuple[str, ...]:
    """The model folders of a run on rows, each once: the one that learns first, then the PRM's reference."""
    reference = config.reference if isinstance(config, PrmConfig) else None
    return tuple(dict.fromkeys((config.model, *([] if reference is None else [reference]))))
