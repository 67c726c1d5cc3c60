"""Tells the outside what a run does: metrics, evaluation, samples, and the summary at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from prime_megatron.algo.reduction import Reduction
from prime_megatron.config import TrainConfig
from prime_megatron.errors import RunError
from prime_megatron.evaluate.held_out import Evaluator
from prime_megatron.metrics import (
    Clock,
    MetricsLog,
    SamplesLog,
    Summary,
    print_summary,
    write_summary,
)
from prime_megatron.metrics.memory import memory_table
from prime_megatron.metrics.summary import SUMMARY_FILE
from prime_megatron.parallel.collectives import OverRanks, gather_all, together
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.exchange import with_texts
from prime_megatron.rollout.recording import Recorder
from prime_megatron.run.alarms import Alarms
from prime_megatron.run.inputs import Inputs
from prime_megatron.run.learned import Learned
from prime_megatron.run.progress import PRM_WINDOW, Progress
from prime_megatron.run.sample_writer import SampleWriter
from prime_megatron.run.speed import Speed
from prime_megatron.run.truncation import truncation_alarm
from prime_megatron.run.verification import Verification, verify_speed
from prime_megatron.step.metrics import StepRecord, step_figures
from prime_megatron.step.plan import StepPlan, plan_step
from prime_megatron.types import Group, sequence_lengths

ASIDE = ("eval", "save")
"""Stages that are not part of a step: its speed is counted without them."""


@dataclass
class Reporter:
    """Reports every step. All ranks call it; only the first one writes."""

    config: TrainConfig
    topology: Topology
    plan: StepPlan
    speed: Speed
    """All models taken as large as the policy."""
    evaluator: Evaluator
    clock: Clock
    log: MetricsLog
    samples: SamplesLog
    recorder: Recorder
    inputs: Inputs
    memory: Callable[[], dict[str, float]]
    """Memory at the edges of generation since it was last asked."""
    restarts: Callable[[], int]
    """`Engine.num_restarts` of this rank."""
    verification: Callable[[], Verification]
    """What this rank's verifiers did, and how long its generation waited for them, since it was last asked."""
    progress: Progress = field(default_factory=Progress)
    learned: Learned = field(default_factory=Learned)
    _memory_told: bool = False
    _alarms: Alarms = field(init=False)
    _restarts_before: int = 0
    """Of earlier attempts."""
    _unwritten: str | None = None
    """Why this rank could not write what it was to write."""

    def __post_init__(self) -> None:
        self._alarms = Alarms(self.config)

    def state(self) -> dict[str, Any]:
        """Progress and clock totals, JSON values."""
        return {
            "progress": asdict(self.progress),
            "learned": self.learned.state(),
            "stage_s": self.clock.total_s,
            "wall_s": self.clock.total_wall_s,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.progress = Progress(**state["progress"])
        if "learned" in state:  # checkpoints of earlier versions have none
            self.learned.restore(state["learned"])
        self._restarts_before = self.progress.num_restarts
        self.clock.restore(state["stage_s"], state["wall_s"])

    def go_on_after(self, step: int) -> None:
        """Drop what the logs hold beyond this step (0: everything), left by an attempt that ended after it."""
        step = step or -1
        self.log.restore(step if self.progress.owed is None else step - 1)
        self.samples.restore(step)
        if self.progress.owed is not None:
            self.samples.cut(self.progress.owed["samples_bytes"])
        self.recorder.restore(step)

    def begin(self, step: int) -> None:
        """Report the state before the first step, or what an earlier attempt owes of its last one. Collective."""
        if self.progress.owed is not None:
            owed = self.progress.owed
            self._complete(step, owed["figures"], None, evaluated=owed["evaluated"])
        elif step == 0:
            self.step(0, None)

    def start(self) -> None:
        """Measure what the utilisation is held against."""
        self.speed.start()
        self.clock.lap()

    def step(self, index: int, record: StepRecord | None) -> None:
        """Evaluate when due, log the step (record None: the state before the first one). Collective.

        Raises:
            RunError: on every rank; no engine could be asked, or the first rank could not write (a full disk).
        """
        figures: dict[str, float] = {}
        if record is not None:
            figures |= step_figures(record, self._reduce, self.config)
            self.learned.add(record.collected.groups)
            figures |= self._data_figures()
            self.progress.num_tokens += int(figures["step/tokens"])
            if "prm/accuracy" in figures:
                self.progress.prm_accuracies = [*self.progress.prm_accuracies, figures["prm/accuracy"]][-PRM_WINDOW:]
            self._write_samples(index, record)
            self._alarm(index, record, figures)
        self._complete(index, figures, record)

    def _complete(
        self, index: int, figures: dict[str, float], record: StepRecord | None, *, evaluated: bool = False
    ) -> None:
        """What is known only after the evaluation, and the log."""
        self.progress.owe(figures, self.samples.num_bytes, evaluated=evaluated)
        if not evaluated and self.evaluator.due(index, self.config.run.steps):
            with self.clock("eval"):
                evaluation = self.evaluator.evaluate(index, self.config.run.steps)
            if evaluation.headline is not None:
                if index == 0:
                    self.progress.accuracy_before = evaluation.headline
                self.progress.accuracy_after = evaluation.headline
            figures |= evaluation.figures
            self._writer.write_held_out(index, evaluation)
            self.progress.owe(figures, self.samples.num_bytes, evaluated=True)
        self.progress.evaluated |= {name: value for name, value in figures.items() if name.startswith("eval/")}
        self.progress.num_restarts = self._restarts_before + sum(gather_all(self.restarts()))
        figures["engine/restarts"] = self.progress.num_restarts
        figures |= (memory := self.memory())
        verification = gather_all(self.verification())
        times = self.clock.lap()
        if record is not None:
            figures |= verify_speed(verification, times.wall_s)
            figures |= self._speed(record, times.wall_s - _aside(times.stage_s))
        with self._writing():
            self.log.log(index, figures | times.metrics())
        with together():
            if self._unwritten is not None:
                raise RunError(self._unwritten)
        self.progress.owed = None
        if record is not None and not self._memory_told:
            self._memory_told = True
            self.log.message(memory_table(memory, self.topology.rank))

    def finish(self) -> None:
        """Write summary.json and print the closing table."""
        if self.topology.rank != 0:
            return
        output = Path(self.config.run.output_dir)
        stages = {stage: seconds for stage, seconds in self.clock.total_s.items() if stage not in ASIDE}
        training_s = self.clock.total_wall_s - _aside(self.clock.total_s)
        summary = Summary(
            steps=self.config.run.steps,
            seed=self.config.run.seed,
            accuracy_before=self.progress.accuracy_before,
            accuracy_after=self.progress.accuracy_after,
            prm_accuracy=fmean(self.progress.prm_accuracies) if self.progress.prm_accuracies else None,
            tokens_per_s=self.progress.num_tokens / training_s if training_s > 0 else None,
            stage_seconds=stages,
            wall_s=training_s,
            engine_restarts=self.progress.num_restarts,
            files=_written(output),
        )
        write_summary(output, summary)
        print_summary(summary)

    @cached_property
    def _writer(self) -> SampleWriter:
        return SampleWriter(self.samples, self.config, self.topology, self.inputs.tokenizer, self._writing)

    @property
    def _reduce(self) -> Reduction:
        return OverRanks(self.topology.data)

    def _write_samples(self, index: int, record: StepRecord) -> None:
        groups = record.collected.groups
        if self.config.rollout.record is not None:
            with self._writing():
                self.recorder.write(index, with_texts(groups))
        self._writer.write_batch(index, record)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A file that cannot be written is told at the end of the step, where all ranks hear of it."""
        try:
            yield
        except (RunError, OSError) as error:
            self._unwritten = str(error)

    def write_rejected(self, index: int, rejected: Sequence[tuple[Group, str]]) -> None:
        """Some of the responses to prompts that the filter dropped in this step, which starves. Collective."""
        self._writer.write_rejected(index, rejected)

    def _data_figures(self) -> dict[str, float]:
        inputs = self.inputs
        return {
            "data/epoch": inputs.prompts.epoch,
            "data/rows": inputs.survey.num_rows - inputs.survey.num_skipped,
            "data/skipped_prompts": inputs.survey.num_skipped,
            "data/left_out_rows": inputs.num_left_out,
            **inputs.prompts.figures(),
            **self.learned.figures(),
        }

    def _alarm(self, index: int, record: StepRecord, figures: dict[str, float]) -> None:
        cut = truncation_alarm(
            record.collected.generated,
            self.inputs.tokenizer,
            self.config.rollout.sampling.max_response_tokens,
        )
        for line in ([] if cut is None else [cut]) + self._alarms.lines(figures, record.gap_limit):
            self.log.warn(f"step {index}: {line}")

    def _speed(self, record: StepRecord, wall_s: float) -> dict[str, float]:
        asked = record.scores.teacher_logprobs_T is not None
        plan = self.plan if asked else plan_step(self.config, taught=False)
        return self.speed.figures(sequence_lengths(record.collected.groups), plan.forwards, wall_s)


def _aside(stage_s: Mapping[str, float]) -> float:
    return sum(seconds for stage, seconds in stage_s.items() if stage in ASIDE)


def _written(output: Path) -> tuple[str, ...]:
    """What lies in the output folder, summary.json included, which is about to."""
    names = {path.name for path in output.iterdir() if not path.name.startswith(".")} | {SUMMARY_FILE}
    return tuple(str(output / name) for name in sorted(names))
