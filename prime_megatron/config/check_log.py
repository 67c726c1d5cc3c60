"""Checks as those of `check`, of the log section, which every kind of run has."""

from __future__ import annotations

from prime_megatron.config.run import LogConfig
from prime_megatron.errors import InputError


def check_log(log: LogConfig, num_steps: int | None) -> None:
    """Whether the keys of trackers and trace fit each other and the run's steps (None or 0: not known yet).

    Raises:
        InputError: naming the key.
    """
    if log.mlflow_uri is not None and log.mlflow_experiment is None:
        raise InputError("log.mlflow_uri: is read with log.mlflow_experiment only; set that, or leave the uri out")
    if log.mlflow_uri is not None and log.offline:
        raise InputError("log.offline: sends nothing to log.mlflow_uri; leave one of them out")
    if log.offline and log.mlflow_experiment is None and log.wandb_project is None:
        raise InputError("log.offline: there is no tracker; set log.wandb_project or log.mlflow_experiment")
    if log.trace_steps is None:
        if log.trace_detail != "stages":
            raise InputError("log.trace_detail: there is no trace; set log.trace_steps, or leave it out")
        return
    if num_steps and log.trace_steps[1] > num_steps:
        first, last = log.trace_steps
        raise InputError(f"log.trace_steps: [{first}, {last}] ends after run.steps {num_steps}; choose earlier steps")
