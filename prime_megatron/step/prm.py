"""The implicit PRM within a step: its update, and how well it tells labelled responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.prm_loss import logit_scores, sibling_terms
from prime_megatron.algo.process_reward import sequence_log_ratio
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import segment_count
from prime_megatron.algo.statistics import Statistics, prm_statistics
from prime_megatron.config import PrmLossKind, PrmObjective
from prime_megatron.mcore.role import Role, TrainResult
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.step.losses import prm_loss
from prime_megatron.types import Group, RolloutBatch

LogRatioTerms = Callable[[StepBatch], tuple[Tensor, Tensor]]
"""Log-probs of the PRM and of its reference, float32 [T] each, of a batch."""

HELD_OUT = {"prm/accuracy": "eval/prm_accuracy", "prm/pair_accuracy": "eval/prm_pair_accuracy", "prm/ce": "eval/prm_ce"}
"""What is told of held-out responses, by the name that it has in training."""


def train_prm(
    prm: Role, batch: StepBatch, ref_logprobs_T: Tensor, scored_T: Tensor | None, objective: PrmObjective
) -> TrainResult:
    """prm.passes times over the batch, one optimizer step per mini-batch. Collective over the world.

    ref_logprobs_T: of the reference, [T]; scored_T: the PRM's before the update, [T], from which dpo and bon take what
    they need of sibling responses; None for ce, which needs nothing of them.
    """
    rollout = batch.rollout
    q_N = None if scored_T is None else log_ratios(rollout, scored_T, ref_logprobs_T, objective.loss)
    siblings = sibling_terms(q_N, rollout.outcome_N, rollout.group_N, objective)
    loss = prm_loss(objective, rollout, ref_logprobs_T, siblings)
    result = prm.train(batch.prm, loss, batch.num_local_tokens)
    for _ in range(objective.passes - 1):
        result = result.followed_by(prm.train(batch.prm, loss, batch.num_local_tokens))
    return result


def log_ratios(rollout: RolloutBatch, prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, loss: PrmLossKind) -> Tensor:
    """``prm_loss.logit_scores`` of every response, float32 [N], nats, not scaled by beta."""
    mask_T, sequence_T, count = rollout.response_mask_T, rollout.sequence_T, rollout.outcome_N.numel()
    q_N = sequence_log_ratio(prm_logprobs_T, ref_logprobs_T, mask_T, sequence_T, count)
    return logit_scores(q_N, segment_count(mask_T, sequence_T, count), loss)


def role_logprobs(role: Role, batch: StepBatch) -> Tensor:
    """A frozen or learning PRM's, or its reference's, log-probs of the whole batch, float32 [T]."""
    micro = [micro for mini in batch.prm for micro in mini.micro]
    return role.logprobs(micro, batch.num_local_tokens).logprobs_T


class PrmHeldOut:
    """Labelled responses that no one learns from: how well a PRM tells right from wrong.

    Args:
        groups: siblings together, the same on every rank; none: nothing is ever measured.
        batcher: lays them out.
        objective: its beta and loss say what a response's logit is.
        reduce: over the data-parallel ranks.
        at_once: groups of one batch.
    """

    def __init__(
        self, groups: Sequence[Group], batcher: Batcher, *, objective: PrmObjective, reduce: Reduction, at_once: int
    ) -> None:
        self.groups = groups
        self.batcher = batcher
        self.objective = objective
        self.reduce = reduce
        self.at_once = at_once

    def due(self, step: int, last_step: int, every: int) -> bool:
        """Whether to measure after this many updates: before the first, after the last, and every n (0: never)."""
        return bool(self.groups) and (step in (0, last_step) or (every > 0 and step % every == 0))

    def measure(self, logprobs: LogRatioTerms) -> dict[str, float]:
        """Accuracy, pair accuracy and cross-entropy; the same on every rank. Collective over the world."""
        sums: dict[str, Tensor] = {}
        for start in range(0, len(self.groups), self.at_once):
            batch = self.batcher(self.groups[start : start + self.at_once])
            rollout = batch.rollout
            q_N = log_ratios(rollout, *logprobs(batch), self.objective.loss)
            part = prm_statistics(q_N, rollout.outcome_N, rollout.group_N, self.objective.beta).sums
            sums = {name: value + sums[name] if sums else value for name, value in part.items()}
        figures = finish(Statistics(sums).reduced(self.reduce))
        return {name: figures[source] for source, name in HELD_OUT.items()}
