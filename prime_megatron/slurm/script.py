"""The text of a job script: directives and settings of one run, then the body that all scripts share (job.sh)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.slurm.duration import seconds_of

BODY = Path(__file__).with_name("job.sh")
MIN_WARNING_S = 300
SAVE_S = 180.0
"""Seconds that a save may take after checkpoint.grace_s."""
MAX_WARNING_S = 65535
"""Of sbatch's --signal."""
UNLIMITED = ("UNLIMITED", "INFINITE")


@dataclass(frozen=True)
class Job:
    """What the job script is made of besides the config."""

    verb: str
    """The run's: train, sft or prm."""
    config_path: str
    """The config that the run reads."""
    python: str
    """The Python of every node."""
    time: str
    """Limit of one attempt, as sbatch takes it."""
    warning_s: int | None
    """Seconds before the limit at which SLURM warns; None: by checkpoint.grace_s."""
    gpus: str | None
    """[TYPE:]N a node; None: launch.processes_per_node; "0": none."""
    requeue: bool
    sbatch: dict[str, str | None]
    """More options of sbatch, by name; None: an option without a value. They replace ours."""
    setup: str
    """Shell lines before the run: modules, conda, a virtual environment."""
    container_image: str
    container_mounts: str


def render(config: TrainConfig | StageConfig, job: Job) -> str:
    """The job script.

    Raises:
        InputError: an option that SLURM would refuse, or that contradicts the config.
    """
    body = BODY.read_text(encoding="utf-8")
    parts = ["#!/usr/bin/env bash", *_directives(config, job), "", *_settings(config, job), "", body]
    return "\n".join(parts)


def _directives(config: TrainConfig | StageConfig, job: Job) -> list[str]:
    gpus = gpus_per_node(config, job.gpus)
    name = safe_name(config.run.name)
    options: dict[str, str | None] = {
        "job-name": name,
        "nodes": str(config.launch.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": gpus} if gpus != "0" else {}),
        "exclusive": None,
        "mem": "0",
        "time": job.time,
        ("requeue" if job.requeue else "no-requeue"): None,
        "dependency": "singleton",
        "signal": f"B:{config.checkpoint.signal}@{_warning_s(config, job)}",
        "open-mode": "append",
        "output": f"{name}-%j.log",
    }
    for option in job.sbatch:
        if option in ("signal", "requeue", "no-requeue", "nodes", "ntasks-per-node", "array", "open-mode"):
            raise InputError(f"--sbatch {option}: the run depends on it; {_instead(option)}")
    options |= job.sbatch
    lines = [
        f"#SBATCH --{key}" + ("" if value is None else f"={_quoted(key, value)}") for key, value in options.items()
    ]
    return lines


def _instead(option: str) -> str:
    return {
        "signal": "use --warning and checkpoint.signal",
        "requeue": "leave out --no-requeue",
        "no-requeue": "use --no-requeue",
        "nodes": "set launch.nodes",
        "ntasks-per-node": "set launch.processes_per_node: a task starts a node's processes",
        "array": "jobs of an array would share one output folder; submit a script for each run",
        "open-mode": "a requeued job's log goes on where it ended",
    }[option]


def _settings(config: TrainConfig | StageConfig, job: Job) -> list[str]:
    gpus = gpus_per_node(config, job.gpus)
    values = {
        "NODES": config.launch.nodes,
        "GPUS_PER_NODE": gpus.rpartition(":")[2],
        "STOP_SIGNAL": config.checkpoint.signal,
        "REQUEUE": 1 if job.requeue else 0,
        "STEPS": config.run.steps,
        "EXPORT": int(config.checkpoint.export_final),
        "OUTPUT_DIR": config.run.output_dir,
        "CONTAINER_IMAGE": job.container_image,
        "CONTAINER_MOUNTS": job.container_mounts,
        "PYTHON": job.python,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    command = shlex.join(["-m", "prime_megatron", job.verb, job.config_path])
    return [*lines, f'COMMAND=("$PYTHON" {command})', "setup() {", *(job.setup.strip() or ":").splitlines(), "}"]


def _warning_s(config: TrainConfig | StageConfig, job: Job) -> int:
    grace_s = config.checkpoint.grace_s
    warning_s = max(MIN_WARNING_S, round(grace_s + SAVE_S)) if job.warning_s is None else job.warning_s
    if not grace_s < warning_s <= MAX_WARNING_S:
        raise InputError(
            f"--warning {warning_s}: must be above checkpoint.grace_s {grace_s:g}, which comes before the save, and at "
            f"most {MAX_WARNING_S}"
        )
    limit_s = seconds_of(job.time)
    if limit_s is None and job.time.upper() not in UNLIMITED:
        raise InputError(f"--time {job.time}: is no time; write MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    if limit_s is not None and limit_s <= warning_s:
        raise InputError(
            f"--time {job.time}: {limit_s} s are not longer than the warning {warning_s} s before the end: the run "
            "would be stopped as it starts; give it more time, or lower --warning"
        )
    return warning_s


def gpus_per_node(config: TrainConfig | StageConfig, asked: str | None) -> str:
    """[TYPE:]N, with "0" for none.

    Raises:
        InputError: not of this form, or fewer GPUs than processes.
    """
    processes = config.launch.processes_per_node
    if asked is None:
        return str(processes)
    match = re.fullmatch(r"(?:([\w.-]+):)?(\d+)", asked)
    if match is None:
        raise InputError(f"--gpus-per-node {asked}: write N or TYPE:N, such as 8 or h100:8; 0 for none")
    count = int(match[2])
    if 0 < count < processes:
        raise InputError(
            f"--gpus-per-node {asked}: launch.processes_per_node is {processes}, and every process takes a GPU; make "
            "them equal"
        )
    return "0" if count == 0 else asked


def safe_name(name: str) -> str:
    """run.name as a job name and a part of a file name: what SLURM or a path would take apart becomes a dash."""
    return re.sub(r"[^\w.+=-]+", "-", name, flags=re.ASCII).strip("-") or "prime"


def _quoted(key: str, value: str) -> str:
    """A directive's value: SLURM splits at spaces and knows double quotes."""
    if re.search(r"[\n\r\"\\]", value):
        raise InputError(f"--sbatch {key}: {value!r} has a line break, a double quote or a backslash; leave them out")
    return f'"{value}"' if re.search(r"[\s'#]", value) else value
