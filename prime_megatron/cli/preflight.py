"""What can be told from the launcher in seconds: folders, files, the tokenizer; before any process is started."""

from __future__ import annotations

from pathlib import Path

from prime_megatron.config import PrmConfig, StageConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.errors import InputError
from prime_megatron.plan.fit import check_memory
from prime_megatron.run.check_models import check_models
from prime_megatron.run.output_dir import check_inputs_outside, check_output_dir, is_done
from prime_megatron.verify import check_custom


def says_done(config: TrainConfig | StageConfig, resume: str | None) -> bool:
    """Whether --resume auto has nothing left to do, said in a line. On many nodes the job script asks, once for all."""
    path = Path(config.run.output_dir)
    if resume != "auto" or config.launch.nodes > 1:
        return False
    if not is_done(path, steps=config.run.steps, export=config.checkpoint.export_final):
        return False
    print(f"{path}: all {config.run.steps} steps are done")
    return True


def check_train_inputs(config: TrainConfig, *, resume: str | None, overwrite: bool) -> None:
    """Output folder, model folders, tokenizer, the first row of every data file, custom rewards.

    Raises:
        InputError: naming the key, the folder or the file.
    """
    _check_output(config.run.output_dir, config.launch.nodes, resume, overwrite, train_inputs(config))
    check_memory(config)
    _check_models(config, policy_folder_of(config), config.models.trust_remote_code)
    _check_data((*config.data.train, *config.data.eval))
    _check_labelled(config.eval.prm_rows)
    check_custom(config.verify.custom)


def check_stage_inputs(config: StageConfig, *, resume: str | None, overwrite: bool) -> None:
    """As `check_train_inputs`, for a run that trains one model on rows."""
    inputs = {"model": config.model} | {f"data.train[{i}]": path for i, path in enumerate(config.data.train)}
    if isinstance(config, PrmConfig):
        inputs |= {f"data.held_out[{i}]": path for i, path in enumerate(config.data.held_out)}
        inputs |= {} if config.reference is None else {"reference": config.reference}
    _check_output(config.run.output_dir, config.launch.nodes, resume, overwrite, inputs)
    check_memory(config)
    _check_models(config, config.model, config.trust_remote_code)
    if isinstance(config, PrmConfig):
        _check_labelled((*config.data.train, *config.data.held_out))
    else:
        _check_data(config.data.train)


def train_inputs(config: TrainConfig) -> dict[str, str]:
    """Config key -> path of everything that a run reads."""
    paths = {
        "models.policy.path": config.models.policy.path,
        "models.prm.path": config.models.prm.path,
        "models.critic.path": config.models.critic.path,
        "models.reference": config.models.reference,
        "rollout.replay": config.rollout.replay,
    }
    paths |= {f"data.train[{i}]": path for i, path in enumerate(config.data.train)}
    paths |= {f"data.eval[{i}]": path for i, path in enumerate(config.data.eval)}
    paths |= {f"eval.prm_rows[{i}]": path for i, path in enumerate(config.eval.prm_rows)}
    return {key: path for key, path in paths.items() if path is not None}


def _check_output(output_dir: str, nodes: int, resume: str | None, overwrite: bool, inputs: dict[str, str]) -> None:
    path = Path(output_dir)
    check_inputs_outside(path, inputs)
    # With many nodes another one's run may have begun to fill the shared folder: only the run's first rank can tell.
    if nodes == 1:
        check_output_dir(path, resume=resume, overwrite=overwrite)


def _check_models(config: TrainConfig | StageConfig, folder: str, trust_remote_code: bool) -> None:
    # Imported here: transformers takes seconds, and config errors should not wait for it.
    from prime_megatron.data.tokenizer import load_tokenizer

    load_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_models(config, config.launch.nodes * config.launch.processes_per_node)


def _check_data(paths: tuple[str, ...]) -> None:
    from prime_megatron.data.rows import iterate

    for path in paths:
        if next(iterate(path), None) is None:
            raise InputError(f"{path}: the data file is empty; it needs at least one row")


def _check_labelled(paths: tuple[str, ...]) -> None:
    from prime_megatron.evaluate.responses import read_responses

    for path in paths:
        read_responses(path, labelled=True)
