"""Supervised fine-tuning: the warm-up before PRIME, on the same models, packing and head."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed as dist

from prime_megatron import device
from prime_megatron.checkpoint.run import Checkpoints
from prime_megatron.config import SftConfig
from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.rows import Remarks, read_sft_rows
from prime_megatron.data.stream import SftStream, Skip
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.errors import ExitCode, InputError
from prime_megatron.families.read import read_config
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.metrics import SFT_COLUMNS, Clock, MetricsLog, open_metrics_log
from prime_megatron.parallel.collectives import agree_on, on_first_rank, together
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.assemble import build_nonfinite, build_watchdog
from prime_megatron.run.check_models import compare_models
from prime_megatron.run.ending import Ending
from prime_megatron.run.models import DTYPES
from prime_megatron.run.nonfinite import NonFinite
from prime_megatron.run.output_dir import check_output_dir, mark_done, own_output_dir
from prime_megatron.run.stop import Stop
from prime_megatron.run.survey import survey
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.step.losses import nll_loss
from prime_megatron.types import Group

MODEL_FOLDER = "model"
"""Below run.output_dir: the trained model as an HF folder."""


def train_sft(config: SftConfig, *, resume: str | None, overwrite: bool) -> int:
    """A whole supervised run on this rank; the model ends up in <output_dir>/model. Returns the exit code."""
    output = Path(config.run.output_dir)
    stop = Stop(config.checkpoint)
    topology = start_megatron(
        config.parallel, seed=config.run.seed, backend=device.backend_name(), timeout_s=config.parallel.timeout_s
    )
    try:
        agree_on(lambda: check_output_dir(output, resume=resume, overwrite=overwrite))
        trainer = SftTrainer(config, topology)  # bad data or a bad model leaves no folder behind
        with on_first_rank(lambda: own_output_dir(output, resume=resume, overwrite=overwrite)):
            return trainer.run(resume, stop)
    finally:
        stop_megatron()


class SftTrainer:
    """Learns supervised rows: one mean of -log p over a batch's response tokens per optimizer step."""

    def __init__(self, config: SftConfig, topology: Topology) -> None:
        self.config = config
        self.topology = topology
        compare_models(config)
        family = read_config(config.model)
        tokenizer = load_tokenizer(
            config.model,
            family.vocab,
            trust_remote_code=config.trust_remote_code,
            options=ChatOptions(*config.data.template_options()),
        )
        remarks = Remarks()
        rows = read_sft_rows(config.data.train, remarks)
        self.stream = SftStream(rows, tokenizer, max_tokens=config.data.max_tokens, seed=config.run.seed)
        self.survey = survey(self.stream, topology)
        skipped = [] if self.survey.line is None else [self.survey.line]
        self.told = [*tokenizer.told, *(f"warning: {line}" for line in (*skipped, *remarks.lines()))]
        """What the run says of its data at the start."""
        self.batcher = Batcher(topology, config.packing)
        self.policy = Role(
            "policy",
            config.model,
            topology,
            config.parallel,
            dtype=DTYPES[config.dtype],
            optimizer=config.optimizer,
            total_updates=config.run.steps,
        )
        self.finished = 0
        """Steps that the model has learned from."""

    def run(self, resume: str | None, stop: Stop) -> int:
        """The steps that are left, reported and saved, then the export; returns the exit code.

        A stop (signal, wall-clock limit) lets the step in flight finish. Collective over the world.

        Raises:
            RunEnded: the run ended itself; the last finished step is saved.
        """
        config, ending = self.config, Ending()
        with self._open_log() as log:
            for line in self.told:
                log.message(line)
            nonfinite = build_nonfinite(config, self.topology, log.warn)
            stateful = {"rows": self.stream, "nonfinite": nonfinite}
            checkpoints = Checkpoints(config, (self.policy,), stateful, log)
            self.finished = checkpoints.resume(resume)
            log.restore(self.finished)
            watchdog = build_watchdog(config, self.topology, stop)
            clock = Clock(device.synchronize, lambda stage: (log.stage(stage), watchdog.beat(stage))[0])
            with stop.installed(), watchdog.watching():
                with ending.noted():
                    while self.finished < config.run.steps and not stop.agreed():
                        self.finish_step(self.finished + 1, clock, log, nonfinite)
                        with clock("save"):
                            checkpoints.after_step(self.finished)
                watchdog.saving()
                if self.finished < config.run.steps or ending.why or config.checkpoint.save_final:
                    ending.save(checkpoints, self.finished)
                checkpoints.close()
            ending.tell(self.finished)
            if self.finished < config.run.steps:
                log.message(f"stopped after step {self.finished}: {stop.reason}")
                return ExitCode.REQUEUE
            if config.checkpoint.export_final:
                log.message(f"model: {self._export()}")
        agree_on(lambda: mark_done(config))
        return ExitCode.DONE

    def finish_step(self, index: int, clock: Clock, log: MetricsLog, nonfinite: NonFinite) -> None:
        """Learn and report; a step that ends at its rows leaves no trace."""
        place = self.stream.state()
        with clock("train"):
            try:
                groups = self.stream.take(self.config.batch_size)
            except InputError:
                self.stream.restore(place)
                raise
            batch = self.batcher(groups)
            result = self.step(batch)
        self.finished = index
        times = clock.lap()
        figures = self._figures(groups, result, times.wall_s) | times.metrics()
        with together():
            log.log(index, figures)
        nonfinite.check(index, {"policy": result}, {"rollout": batch.rollout})

    def step(self, batch: StepBatch) -> TrainResult:
        """One optimizer step on these rows. Collective over the world."""
        return self.policy.train(batch.policy, nll_loss(), batch.num_local_tokens)

    def _open_log(self) -> MetricsLog:
        config = self.config
        return open_metrics_log(
            Path(config.run.output_dir),
            config.log,
            rank=self.topology.rank,
            name=config.run.name,
            num_steps=config.run.steps,
            columns=SFT_COLUMNS,
            run_config=config.model_dump(mode="json"),
            slurm_comment=config.launch.slurm_comment,
        )

    def _export(self) -> Path:
        folder = Path(self.config.run.output_dir) / MODEL_FOLDER
        if self.topology.rank == 0 and folder.exists():
            shutil.rmtree(folder)  # of an attempt that ended while it exported
        dist.barrier()
        self.policy.export(folder)
        return folder

    def _figures(self, groups: list[Group], result: TrainResult, wall_s: float) -> dict[str, float]:
        num_tokens = sum(len(group.prompt.token_ids) + len(group.samples[0].token_ids) for group in groups)
        (update,) = result.updates
        found = self.survey
        return {
            "sft/loss": result.stats["sft_loss_sum"] / result.stats["sft_num_tokens"],
            "sft/grad_norm": update.grad_norm,
            "sft/lr": update.lr,
            "sft/skipped_updates": float(not update.applied),
            "sft/epoch": float(self.stream.epoch),
            "sft/rows": float(found.num_rows - found.num_skipped),
            "sft/skipped_rows": float(found.skipped[Skip.too_long] + found.skipped[Skip.no_tokens]),
            "sft/masked_rows": float(found.skipped[Skip.masked] + found.skipped[Skip.open_thought]),
            "speed/tokens_per_s": num_tokens / wall_s,
        }
