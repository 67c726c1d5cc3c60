"""The implicit PRM alone: learns the outcomes of given responses, in the training's own role, losses and layouts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.statistics import Statistics, prm_statistics
from prime_megatron.checkpoint.run import Stateful
from prime_megatron.config import PrmConfig
from prime_megatron.config.check_algorithm import SIBLING_LOSSES
from prime_megatron.config.load import dump_yaml
from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluate.responses import Encoder, ResponseStream, read_held_out, read_responses, sibling_groups
from prime_megatron.families.read import read_config
from prime_megatron.mcore.role import Role
from prime_megatron.metrics import PRM_COLUMNS
from prime_megatron.parallel.collectives import OverRanks
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.check_models import compare_models
from prime_megatron.run.model_card import Card
from prime_megatron.run.models import DTYPES
from prime_megatron.run.prm_note import note_of
from prime_megatron.run.stage import StageStep, run_stage
from prime_megatron.run.survey import survey
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.step.prm import PrmHeldOut, log_ratios, role_logprobs, train_prm
from prime_megatron.types import sequence_lengths

TOLD = ("prm/accuracy", "prm/pair_accuracy", "prm/ce", "prm/probability_mean", "prm/log_ratio_mean", "prm/loss")
"""Figures of the rows that a step learned from, before its update."""


def train_prm_alone(config: PrmConfig, *, resume: str | None, overwrite: bool) -> int:
    """A whole run on this rank; the PRM ends up in <output_dir>/model, its reference named. Returns the exit code."""
    return run_stage(config, lambda topology: PrmStage(config, topology), resume=resume, overwrite=overwrite)


class PrmStage:
    """Learns outcomes of labelled responses; the reference, a second role, stays as it is."""

    columns = PRM_COLUMNS

    def __init__(self, config: PrmConfig, topology: Topology) -> None:
        self.config = config
        self.num_steps = config.run.steps
        compare_models(config)
        family = read_config(config.model)
        tokenizer = load_tokenizer(
            config.model,
            family.vocab,
            trust_remote_code=config.trust_remote_code,
            options=ChatOptions(*config.data.template_options()),
        )
        encoder = Encoder(tokenizer, family.vocab, config.data.max_tokens, step_end_table_V=None)
        rows = [row for path in config.data.train for row in read_responses(path, labelled=True)]
        if len({row.sample.outcome for row in rows}) < 2:
            raise InputError(
                f"{', '.join(config.data.train)}: all outcomes are {rows[0].sample.outcome}; a PRM needs two"
            )
        groups = sibling_groups(rows, config.data.group_size)
        self.stream = ResponseStream(groups, encoder, seed=config.run.seed)
        skipped = survey(self.stream, topology).line
        self.told = [*tokenizer.told, *([] if skipped is None else [f"warning: {skipped}"])]
        """What the run says of its data at the start."""
        self.reduce = OverRanks(topology.data)
        self.batcher = Batcher(topology, config.packing)
        self.held_out = PrmHeldOut(
            read_held_out(config.data.held_out, encoder),
            self.batcher,
            objective=config.prm,
            reduce=self.reduce,
            at_once=config.batch_size,
        )
        self.learner = self._role("prm", config.model, topology, learns=True)
        self.reference = self._role("reference", config.reference or config.model, topology, learns=False)

    def _role(self, name: str, folder: str, topology: Topology, *, learns: bool) -> Role:
        config = self.config
        return Role(
            name,
            folder,
            topology,
            config.parallel,
            dtype=DTYPES[config.dtype],
            optimizer=config.optimizer if learns else None,
            total_updates=config.run.steps,
        )

    @property
    def stateful(self) -> Mapping[str, Stateful]:
        """What is saved beside the model."""
        return {"rows": self.stream}

    def next_step(self) -> StageStep:
        """The next groups, and an optimizer step on them."""
        groups = self.stream.take(self.config.batch_size)
        batch, objective = self.batcher(groups), self.config.prm
        reference_T = role_logprobs(self.reference, batch)
        scored_T = role_logprobs(self.learner, batch) if objective.loss in SIBLING_LOSSES else None
        result = train_prm(self.learner, batch, reference_T, scored_T, objective)
        rollout = batch.rollout
        told_T = result.logprobs.logprobs_T  # of the update's own forward
        q_N = log_ratios(rollout, told_T, reference_T, objective.loss)
        statistics = prm_statistics(q_N, rollout.outcome_N, rollout.group_N, objective.beta).reduced(self.reduce)
        learned = {"prm_loss_sum": result.stats["prm_loss_sum"], "prm_updates": len(result.updates)}
        sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in learned.items()}
        told = finish(statistics.merged(Statistics(sums)))
        (update,) = result.updates
        figures = {name: told[name] for name in TOLD} | {
            "prm/grad_norm": update.grad_norm,
            "prm/lr": update.lr,
            "prm/skipped_updates": float(not update.applied),
            "data/epoch": float(self.stream.epoch),
        }
        # The reference's pass, the PRM's own where siblings are compared, and its update.
        forwards = 1.0 + (scored_T is not None) + 3.0 * objective.passes
        return StageStep(figures, sequence_lengths(groups), forwards, result, rollout)

    def due(self, step: int) -> bool:
        """Whether to measure on data.held_out after this many steps."""
        return self.held_out.due(step, self.num_steps, self.config.eval_every)

    def measure(self) -> dict[str, float]:
        """The PRM on data.held_out."""
        return self.held_out.measure(self._logprobs)

    def _logprobs(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        return role_logprobs(self.learner, batch), role_logprobs(self.reference, batch)

    def card(self, step: int, figures: Mapping[str, float]) -> Card:
        """What the exported PRM's card says; its note names the reference."""
        config = self.config
        note = note_of(self.reference.folder, beta=config.prm.beta, loss=config.prm.loss)
        return Card(config.run.name, "prm", config.model, step, dump_yaml(config), figures, note)
