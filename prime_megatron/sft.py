"""Supervised fine-tuning: the warm-up before PRIME, on the same models, packing and head."""

from __future__ import annotations

from collections.abc import Mapping

from prime_megatron.checkpoint.run import Stateful
from prime_megatron.config import SftConfig
from prime_megatron.config.load import dump_yaml
from prime_megatron.config.schedule import warn_schedule
from prime_megatron.data.encode import Skip
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.metrics import SFT_COLUMNS
from prime_megatron.parallel.collectives import OverRanks
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.check_models import compare_models
from prime_megatron.run.model_card import Card
from prime_megatron.run.models import DTYPES
from prime_megatron.run.stage import StageStep, run_stage
from prime_megatron.run.supervised import read_supervised
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.step.held_out_loss import HeldOutLoss
from prime_megatron.step.losses import nll_loss
from prime_megatron.types import sequence_lengths

FORWARDS = 3.0
"""Passes over a step's rows: a forward, and a backward that counts as two."""


def train_sft(config: SftConfig, *, resume: str | None, overwrite: bool) -> int:
    """A whole supervised run on this rank; the model ends up in <output_dir>/model. Returns the exit code."""
    return run_stage(config, lambda topology: SftTrainer(config, topology), resume=resume, overwrite=overwrite)


class SftTrainer:
    """Learns supervised rows: one mean of -log p over a batch's response tokens per optimizer step."""

    columns = SFT_COLUMNS

    def __init__(self, config: SftConfig, topology: Topology) -> None:
        self.config = config
        compare_models(config)
        rows = read_supervised(config, topology)
        self.stream = rows.stream
        self.survey = rows.survey
        self.num_steps = config.run.steps or -(-config.run.epochs * rows.num_learned // config.batch_size)
        self.told = [*rows.told, *self._length_told(rows.num_learned)]
        """What the run says of its data at the start."""
        self.batcher = Batcher(topology, config.packing)
        self.held_out = HeldOutLoss(
            rows.held_out, self.batcher, reduce=OverRanks(topology.data), at_once=config.batch_size
        )
        self.policy = Role(
            "policy",
            config.model,
            topology,
            config.parallel,
            dtype=DTYPES[config.dtype],
            optimizer=config.optimizer,
            total_updates=self.num_steps,
        )

    def _length_told(self, num_learned: int) -> list[str]:
        """How long a run is whose length its rows decide."""
        config, steps = self.config, self.num_steps
        if not config.run.epochs:
            return []
        line = f"{steps:,} steps: run.epochs {config.run.epochs} of {num_learned:,} rows, {config.batch_size} a step"
        return [line, *(f"warning: {said}" for said in warn_schedule("optimizer", config.optimizer, steps))]

    @property
    def learner(self) -> Role:
        """The model that learns."""
        return self.policy

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """What is saved beside the model."""
        return {"rows": self.stream}

    def next_step(self) -> StageStep:
        """The next rows, and an optimizer step on them."""
        groups = self.stream.take(self.config.batch_size)
        batch = self.batcher(groups)
        result = self.step(batch)
        (update,) = result.updates
        found = self.survey
        figures = {
            "sft/loss": result.stats["sft_loss_sum"] / result.stats["sft_num_tokens"],
            "sft/grad_norm": update.grad_norm,
            "sft/lr": update.lr,
            "sft/skipped_updates": float(not update.applied),
            "sft/epoch": float(self.stream.epoch),
            "sft/rows": float(found.num_rows - found.num_skipped),
            "sft/skipped_rows": float(found.skipped[Skip.too_long] + found.skipped[Skip.no_tokens]),
            "sft/masked_rows": float(found.skipped[Skip.masked] + found.skipped[Skip.open_thought]),
        }
        return StageStep(figures, sequence_lengths(groups), FORWARDS, result, batch.rollout)

    def step(self, batch: StepBatch) -> TrainResult:
        """One optimizer step on these rows. Collective over the world."""
        return self.policy.train(batch.policy, nll_loss(), batch.num_local_tokens)

    def due(self, step: int) -> bool:
        """Whether to measure on the held-out rows after this many steps."""
        return self.held_out.due(step, self.num_steps, self.config.eval_every)

    def measure(self) -> dict[str, float]:
        """Loss and perplexity on the held-out rows."""
        return self.held_out.measure(self.policy)

    def card(self, step: int, figures: Mapping[str, float]) -> Card:
        """What the exported model's card says."""
        config = self.config
        return Card(config.run.name, "sft", config.model, step, dump_yaml(config), figures)
