"""Supervised fine-tuning: the warm-up before PRIME, on the same models, packing and head."""

from __future__ import annotations

from collections.abc import Mapping

from prime_megatron.checkpoint.run import Stateful
from prime_megatron.config import SftConfig
from prime_megatron.config.load import dump_yaml
from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.encode import Skip
from prime_megatron.data.rows import Remarks, read_sft_rows
from prime_megatron.data.stream import SftStream
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.families.read import read_config
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.metrics import SFT_COLUMNS
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.check_models import compare_models
from prime_megatron.run.model_card import Card
from prime_megatron.run.models import DTYPES
from prime_megatron.run.stage import StageStep, run_stage
from prime_megatron.run.survey import survey
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.step.losses import nll_loss


def train_sft(config: SftConfig, *, resume: str | None, overwrite: bool) -> int:
    """A whole supervised run on this rank; the model ends up in <output_dir>/model. Returns the exit code."""
    return run_stage(config, lambda topology: SftTrainer(config, topology), resume=resume, overwrite=overwrite)


class SftTrainer:
    """Learns supervised rows: one mean of -log p over a batch's response tokens per optimizer step."""

    columns = SFT_COLUMNS

    def __init__(self, config: SftConfig, topology: Topology) -> None:
        self.config = config
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
        num_tokens = sum(len(group.prompt.token_ids) + len(group.samples[0].token_ids) for group in groups)
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
        return StageStep(figures, num_tokens, result, batch.rollout)

    def step(self, batch: StepBatch) -> TrainResult:
        """One optimizer step on these rows. Collective over the world."""
        return self.policy.train(batch.policy, nll_loss(), batch.num_local_tokens)

    def due(self, step: int) -> bool:
        """Supervised runs measure nothing on held-out rows."""
        return False

    def measure(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def card(self, step: int, figures: Mapping[str, float]) -> Card:
        """What the exported model's card says."""
        config = self.config
        return Card(config.run.name, "sft", config.model, step, dump_yaml(config), figures)
