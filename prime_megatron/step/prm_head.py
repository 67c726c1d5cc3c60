"""A PRM with a head within a step: scoring, its update, and what it says of whole responses."""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.head_value import beginning_weights, head_loss, response_logits
from prime_megatron.config import PrmAlgorithm, PrmKind, UpdateOrder
from prime_megatron.mcore.head_prm import HeadPrm, HeadResult, MakePrefixLoss, PrefixLoss
from prime_megatron.mcore.role import Role
from prime_megatron.step.batch import StepBatch
from prime_megatron.types import MiniBatch, PackedSequences, RolloutBatch, Scores


def update_head(
    prm: Role | None, batch: StepBatch, scores: Scores, config: PrmAlgorithm, order: UpdateOrder
) -> tuple[Scores, HeadResult | None]:
    """Score with the head and let it learn, in this order. Collective over the world."""
    assert isinstance(prm, HeadPrm)
    match order:
        case UpdateOrder.after:
            update = train_head(prm, batch, config)
            return scores.with_head(update.logits_T), update
        case UpdateOrder.before:
            update = train_head(prm, batch, config)
            return scores.with_head(head_logits(prm, batch)), update
        case UpdateOrder.reverse:
            scores = scores.with_head(head_logits(prm, batch))
            return scores, train_head(prm, batch, config)
        case UpdateOrder.none:
            return scores.with_head(head_logits(prm, batch)), None


def train_head(prm: HeadPrm, batch: StepBatch, config: PrmAlgorithm) -> HeadResult:
    """prm.passes times over the batch, one optimizer step per mini-batch; the logits are those of the first pass."""
    loss = _head_loss(batch.rollout, config)
    result = prm.train_logits(batch.prm, loss, batch.num_local_tokens)
    for _ in range(config.passes - 1):
        result = result.followed_by(prm.train_logits(batch.prm, loss, batch.num_local_tokens))
    return result


def head_logits(prm: HeadPrm, batch: StepBatch) -> Tensor:
    """The head's logits of the whole batch, float32 [T]."""
    return prm.logits([micro for mini in batch.prm for micro in mini.micro], batch.num_local_tokens)


def head_as_log_ratio(prm: Role, batch: StepBatch) -> tuple[Tensor, Tensor]:
    """The head's logit of each whole response, on its last token, and zeros: what `PrmHeldOut` takes for a log-ratio
    whose sum is Q; float32 [T] each."""
    assert isinstance(prm, HeadPrm)
    logits_T = head_logits(prm, batch)
    last = batch.rollout.cu_seqlens[1:] - 1
    whole_T = torch.zeros_like(logits_T).index_copy(0, last, response_logits(logits_T, batch.rollout))
    return whole_T, torch.zeros_like(whole_T)


def held_out_objective(config: PrmAlgorithm) -> PrmAlgorithm:
    """What `PrmHeldOut` goes by: of a head, whose logit is one already, with beta 1."""
    return config.model_copy(update={"beta": 1.0}) if config.kind is PrmKind.head else config


def _head_loss(batch: RolloutBatch, config: PrmAlgorithm) -> MakePrefixLoss:
    weights_T, targets_T = beginning_weights(batch, config.loss), batch.outcome_N[batch.sequence_T]

    def make(micro: PackedSequences, mini: MiniBatch) -> PrefixLoss:
        weights_S, targets_S = micro.gather(weights_T) / mini.num_sequences, micro.gather(targets_T)
        return lambda logits_S: head_loss(logits_S, targets_S, weights_S)

    return make
