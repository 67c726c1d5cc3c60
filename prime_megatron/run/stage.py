"""A run that trains one model on rows, from its first step to its export: what supervised and PRM runs share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from prime_megatron import device
from prime_megatron.checkpoint.run import Checkpoints, Stateful
from prime_megatron.config import StageConfig
from prime_megatron.errors import ExitCode, InputError
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.metrics import Clock, Column, MetricsLog, open_metrics_log
from prime_megatron.parallel.collectives import agree_on, on_first_rank, together
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.assemble import build_nonfinite, build_watchdog
from prime_megatron.run.ending import Ending
from prime_megatron.run.model_card import Card, write_card
from prime_megatron.run.models import DTYPES
from prime_megatron.run.nonfinite import NonFinite
from prime_megatron.run.output_dir import check_output_dir, mark_done, own_output_dir
from prime_megatron.run.speed import Speed
from prime_megatron.run.stop import Stop
from prime_megatron.run.tracing import Tracing
from prime_megatron.types import RolloutBatch

MODEL_FOLDER = "model"
"""Below run.output_dir: the trained model as an HF folder."""


@dataclass(frozen=True)
class StageStep:
    """What one step did."""

    figures: Mapping[str, float]
    lengths: Sequence[int]
    """Tokens of every sequence of the step over all ranks."""
    forwards: float
    """Passes over them, a backward counted as two."""
    result: TrainResult
    rollout: RolloutBatch


class Stage(Protocol):
    """What a kind of run does of its own. Every method is collective over the world."""

    learner: Role
    num_steps: int
    """Steps of the whole run."""
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

    Raises:
        RunEnded: the run ended itself; the last finished step is saved.
    """
    ending, output = Ending(), Path(config.run.output_dir)
    log = open_metrics_log(
        output,
        config.log,
        rank=topology.rank,
        name=config.run.name,
        num_steps=stage.num_steps,
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
        speed = Speed(stage.learner.family, DTYPES[config.dtype], topology.sizes.world)
        speed.start()
        tracing = Tracing(config.log, output, topology, log.message)
        clock = Clock(device.synchronize, lambda at: (log.stage(at), watchdog.beat(at))[0], tracing.stage)
        loop = _Loop(stage, clock, log, nonfinite, speed, step)
        with closing(tracing), stop.installed(), watchdog.watching():
            with ending.noted():
                loop.begin()
                while loop.finished < stage.num_steps and not stop.agreed():
                    with tracing.step(loop.finished + 1):
                        loop.finish_step(loop.finished + 1)
                        with clock("save"):
                            checkpoints.after_step(loop.finished)
            watchdog.saving()
            if loop.finished < stage.num_steps or ending.why or config.checkpoint.save_final:
                ending.save(checkpoints, loop.finished)
            checkpoints.close()
            tracing.finish()
        ending.tell(loop.finished)
        if loop.finished < stage.num_steps:
            log.message(f"stopped after step {loop.finished}: {stop.reason}")
            return ExitCode.REQUEUE
        if config.checkpoint.export_final:
            card = stage.card(loop.finished, loop.last_measured())
            log.message(f"model: {_export(config, topology, stage.learner, card)}")
    agree_on(lambda: mark_done(config, stage.num_steps))
    return ExitCode.DONE


@dataclass
class _Loop:
    """The steps of a run."""

    stage: Stage
    clock: Clock
    log: MetricsLog
    nonfinite: NonFinite
    speed: Speed
    finished: int
    """Steps that the model has learned from."""
    measured: dict[str, float] = field(default_factory=dict)
    """The last figures on held-out rows."""

    def begin(self) -> None:
        """Measure the state before the first step, where that is due."""
        if self.finished == 0 and self.stage.due(0):
            figures = self.stage.measure()
            with together():
                self.log.log(0, figures)

    def finish_step(self, index: int) -> None:
        """Learn and report; a step that ends at its rows leaves no trace."""
        places = {name: part.state() for name, part in self.stage.stateful.items()}
        with self.clock("train"):
            try:
                done = self.stage.next_step()
            except InputError:
                for name, part in self.stage.stateful.items():
                    part.restore(places[name])
                raise
        self.finished = index
        figures = dict(done.figures)
        if self.stage.due(index):
            with self.clock("eval"):
                self.measured = self.stage.measure()
            figures |= self.measured
        times = self.clock.lap()
        figures |= self.speed.figures(done.lengths, done.forwards, times.stage_s["train"])
        with together():
            self.log.log(index, figures | times.metrics())
        self.nonfinite.check(index, {self.stage.learner.name: done.result}, {"rollout": done.rollout})

    def last_measured(self) -> dict[str, float]:
        """The last figures, measured now where this attempt made no step."""
        return self.measured or (self.stage.measure() if self.stage.due(self.finished) else {})


def _export(config: StageConfig, topology: Topology, learner: Role, card: Card) -> Path:
    folder = Path(config.run.output_dir) / MODEL_FOLDER
    if topology.rank == 0 and folder.exists():
        shutil.rmtree(folder)  # of an attempt that ended while it exported
    dist.barrier()
    learner.export(folder)
    agree_on(lambda: write_card(folder, card))
    return folder
