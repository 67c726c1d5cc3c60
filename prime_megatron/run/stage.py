"""A run that trains one model on rows, from its first step to its export: what supervised and PRM runs share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from prime_megatron import device
from prime_megatron.checkpoint.run import Checkpoints, Stateful
from prime_megatron.config import StageConfig
from prime_megatron.errors import ExitCode
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.metrics import Clock, Column, open_metrics_log
from prime_megatron.parallel.collectives import agree_on, on_first_rank
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.assemble import build_nonfinite, build_watchdog
from prime_megatron.run.model_card import Card, write_card
from prime_megatron.run.output_dir import check_output_dir, mark_done, own_output_dir
from prime_megatron.run.stop import Stop
from prime_megatron.types import RolloutBatch

MODEL_FOLDER = "model"
"""Below run.output_dir: the trained model as an HF folder."""


@dataclass(frozen=True)
class StageStep:
    """What one step did."""

    figures: Mapping[str, float]
    num_tokens: int
    """Of the step's rows over all ranks."""
    result: TrainResult
    rollout: RolloutBatch


class Stage(Protocol):
    """What a kind of run does of its own. Every method is collective over the world."""

    learner: Role
    columns: tuple[Column, ...]
    told: Sequence[str]
    """What the run says of its data at the start."""

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """What is saved beside the model, by name."""
        ...

    def next_step(self) -> StageStep:
        """The next rows, and an optimizer step on them."""
        ...

    def due(self, step: int) -> bool:
        """Whether to measure after this many steps."""
        ...

    def measure(self) -> dict[str, float]:
        """Figures on held-out rows."""
        ...

    def card(self, step: int, figures: Mapping[str, float]) -> Card:
        """What the exported model's card says; figures: the last that were measured."""
        ...


def run_stage(config: StageConfig, make: Callable[[Topology], Stage], *, resume: str | None, overwrite: bool) -> int:
    """A whole run on this rank; the model ends up in <output_dir>/model. Returns the exit code."""
    output = Path(config.run.output_dir)
    stop = Stop(config.checkpoint)
    topology = start_megatron(
        config.parallel, seed=config.run.seed, backend=device.backend_name(), timeout_s=config.parallel.timeout_s
    )
    try:
        agree_on(lambda: check_output_dir(output, resume=resume, overwrite=overwrite))
        stage = make(topology)  # bad data or a bad model leaves no folder behind
        with on_first_rank(lambda: own_output_dir(output, resume=resume, overwrite=overwrite)):
            return _run(config, topology, stage, resume, stop)
    finally:
        stop_megatron()


def _run(config: StageConfig, topology: Topology, stage: Stage, resume: str | None, stop: Stop) -> int:
    """The steps that are left, reported and saved, then the export.

    A stop (signal, wall-clock limit) lets the step in flight finish.
    """
    log = open_metrics_log(
        Path(config.run.output_dir),
        config.log,
        rank=topology.rank,
        name=config.run.name,
        num_steps=config.run.steps,
        columns=stage.columns,
        run_config=config.model_dump(mode="json"),
        slurm_comment=config.launch.slurm_comment,
    )
    with log:
        for line in stage.told:
            log.message(line)
        nonfinite = build_nonfinite(config, topology, log.warn)
        checkpoints = Checkpoints(config, (stage.learner,), {**stage.stateful, "nonfinite": nonfinite}, log)
        step = checkpoints.resume(resume)
        log.restore(step or -1)
        watchdog = build_watchdog(config, topology, stop)
        clock = Clock(device.synchronize, lambda stage: (log.stage(stage), watchdog.beat(stage))[0])
        measured: dict[str, float] = {}
        with stop.installed(), watchdog.watching():
            if step == 0 and stage.due(0):
                log.log(0, stage.measure())
            while step < config.run.steps and not stop.agreed():
                step += 1
                with clock("train"):
                    done = stage.next_step()
                figures = dict(done.figures)
                if stage.due(step):
                    with clock("eval"):
                        measured = stage.measure()
                    figures |= measured
                times = clock.lap()
                speed = {"speed/tokens_per_s": done.num_tokens / times.stage_s["train"]}
                log.log(step, figures | speed | times.metrics())
                nonfinite.check(step, {stage.learner.name: done.result}, {"rollout": done.rollout})
                with clock("save"):
                    checkpoints.after_step(step)
            watchdog.saving()
            if step < config.run.steps or config.checkpoint.save_final:
                checkpoints.save_last(step)
            checkpoints.close()
        if step < config.run.steps:
            log.message(f"stopped after step {step}: {stop.reason}")
            return ExitCode.REQUEUE
        if config.checkpoint.export_final:
            measured = measured or (stage.measure() if stage.due(step) else {})
            log.message(f"model: {_export(config, topology, stage.learner, stage.card(step, measured))}")
    agree_on(lambda: mark_done(config))
    return ExitCode.DONE


def _export(config: StageConfig, topology: Topology, learner: Role, card: Card) -> Path:
    folder = Path(config.run.output_dir) / MODEL_FOLDER
    if topology.rank == 0 and folder.exists():
        shutil.rmtree(folder)  # of an attempt that ended while it exported
    dist.barrier()
    learner.export(folder)
    agree_on(lambda: write_card(folder, card))
    return folder
