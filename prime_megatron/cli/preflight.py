"""What can be told from the launcher in seconds: folders, files, the tokenizer; before any process is started."""

from __future__ import annotations

from pathlib import Path

from prime_megatron.config import LogConfig, PrmConfig, SftConfig, StageConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.mcore.versions import require_tested
from prime_megatron.plan.fit import check_memory
from prime_megatron.run.check_models import check_models
from prime_megatron.run.output_dir import check_inputs_outside, check_output_dir, is_done
from prime_megatron.step.plan import plan_step
from prime_megatron.verify import check_custom


def says_done(config: TrainConfig | StageConfig, resume: str | None) -> bool:
    """Whether --resume auto has nothing left to do, said in a line. On many nodes the job script asks, once for all."""
    path = Path(config.run.output_dir)
    if resume != "auto" or config.launch.nodes > 1:
        return False
    if not is_done(path, steps=config.run.steps, export=config.checkpoint.export_final):
        return False
    print(f"{path}: all {f'{config.run.steps} steps' if config.run.steps else 'epochs'} are done")
    return True


def check_train_inputs(config: TrainConfig, *, resume: str | None, overwrite: bool) -> None:
    """megatron-core's release, output folder, model folders, tokenizer, the data as far as `check_data` reads it,
    custom rewards.

    Raises:
        InputError: naming the release, the key, the folder or the file.
    """
    require_tested()
    _check_output(config.run.output_dir, config.launch.nodes, resume, overwrite, train_inputs(config))
    from prime_megatron.rollout.recording import check_record  # brings torch

    check_record(config.rollout.record)
    check_folders(config, all_here=True)
    check_memory(config)
    _check_models(config)
    _check_labelled(config.eval.prm_rows)
    _check_replay(config.rollout.replay)
    _check_suite(config)
    check_custom(config.verify.custom)
    check_objective(config)
    check_trackers(config.log)


def check_objective(config: TrainConfig) -> None:
    """Import and try a policy objective of the user's own; the others are known.

    Raises:
        InputError: naming what is wrong with it.
    """
    if ":" in config.policy.objective:
        from prime_megatron.algo.objectives import objective_named  # with torch

        objective_named(config.policy.objective)


def check_stage_inputs(config: StageConfig, *, resume: str | None, overwrite: bool) -> None:
    """As `check_train_inputs`, for a run that trains one model on rows."""
    require_tested()
    inputs = {"model": config.model} | {f"data.train[{i}]": path for i, path in enumerate(config.data.train)}
    if isinstance(config, PrmConfig | SftConfig):
        inputs |= {f"data.held_out[{i}]": path for i, path in enumerate(config.data.held_out)}
    if isinstance(config, PrmConfig) and config.reference is not None:
        inputs["reference"] = config.reference
    _check_output(config.run.output_dir, config.launch.nodes, resume, overwrite, inputs)
    check_folders(config, all_here=True)
    check_memory(config)
    _check_models(config)
    check_trackers(config.log)


def check_trackers(log: LogConfig) -> None:
    """Import what W&B and MLflow need, where they are asked for; nothing is opened.

    Raises:
        InputError: a package is not installed.
    """
    if log.wandb_project is not None or log.mlflow_experiment is not None:
        from prime_megatron.metrics.trackers import asked_for  # with torch

        asked_for(Path(), log, name="", run_config={})


def train_inputs(config: TrainConfig) -> dict[str, str]:
    """Config key -> path of everything that a run reads."""
    paths = {
        "models.policy.path": config.models.policy.path,
        "models.prm.path": config.models.prm.path,
        "models.critic.path": config.models.critic.path,
        "models.reference": config.models.reference,
        "models.teacher": config.models.teacher,
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


def check_folders(config: TrainConfig | StageConfig, *, all_here: bool) -> None:
    """Model folders that the run reads are folders; without `all_here` they may be absent. Raises InputError."""
    if isinstance(config, StageConfig):
        folders = {"model": config.model}
        if isinstance(config, PrmConfig) and config.reference is not None:
            folders["reference"] = config.reference
    else:
        used = {model.folder for model in plan_step(config).models}
        folders = {key: path for key, path in train_inputs(config).items() if path in used}
    for key, name in folders.items():
        path = Path(name)
        if path.is_dir() or not (all_here or path.exists()):
            continue
        what = "is a file" if path.exists() else "no such model folder"
        raise InputError(f"{key}: {name}: {what}; give an HF folder with config.json, a tokenizer and weights")


def _check_models(config: TrainConfig | StageConfig) -> None:
    # Imported here: transformers takes seconds, and config errors should not wait for it.
    from prime_megatron.run.check_data import check_data

    check_models(config, config.launch.nodes * config.launch.processes_per_node)
    check_data(config, all_here=True)


def _check_labelled(paths: tuple[str, ...]) -> None:
    if paths:
        from prime_megatron.evaluate.responses import read_responses

        for path in paths:
            read_responses(path, labelled=True)


def _check_suite(config: TrainConfig) -> None:
    from prime_megatron.run.suite import read_suite

    read_suite(config)


def _check_replay(path: str | None) -> None:
    if path is not None and not Path(path).is_file():
        raise InputError(f"rollout.replay: {path}: no such file; give a recording made with rollout.record")
