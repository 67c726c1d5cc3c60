"""The losses that the roles learn: one mean over the global counts, the right rows, the right weights."""

from __future__ import annotations

import pytest
import torch

from prime_megatron.config import PolicyAlgorithm
from prime_megatron.data.batch import select
from prime_megatron.step.losses import nll_loss, policy_loss
from prime_megatron.step.plan import OldLogprobs
from prime_megatron.types import Advantages, MiniBatch, RolloutBatch, Scores

MASK = [False, True, True, False, False, True]
ENGINE = torch.tensor([0.0, -1.0, -2.0, 0.0, 0.0, -3.0])


def batch() -> RolloutBatch:
    mask_T = torch.tensor(MASK)
    return RolloutBatch(
        tokens_T=torch.arange(6),
        cu_seqlens=torch.tensor([0, 3, 6]),
        response_mask_T=mask_T,
        group_N=torch.tensor([0, 0]),
        outcome_N=torch.tensor([1.0, 0.0]),
        truncated_N=torch.tensor([False, False]),
        version_N=torch.tensor([0, 0]),
        engine_logprobs_T=ENGINE,
        step_end_T=mask_T,
        num_tokens=10,
        num_sequences=4,
    )


@pytest.mark.parametrize("cap", [None, 1.5])
def test_policy_mean_and_importance_weights(cap: float | None) -> None:
    rollout = batch()
    micro = select(rollout, [1, 0])  # rows: token 5, then tokens 1 and 2
    mini = MiniBatch((micro,), num_tokens=10, num_sequences=4)
    old_T = torch.tensor([0.0, -0.5, -2.5, 0.0, 0.0, -2.9])
    scores = Scores(old_T, None, None, None)
    advantages_T = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, -3.0])
    credit = Advantages(advantages_T, advantages_T, advantages_T)
    config = PolicyAlgorithm(importance_cap=cap)
    loss = policy_loss(config, rollout, scores, credit, OldLogprobs.all, first=mini)(micro, mini)
    weights = [1.0, 1.0, 1.0] if cap is None else [min(2.718281828**gap, cap) for gap in (0.1, 0.5, -0.5)]
    assert loss.weights_T.tolist() == pytest.approx([0.1] * 3)
    assert loss.advantages_T.tolist() == pytest.approx([a * w for a, w in zip((-3.0, 1.0, 2.0), weights, strict=True)])
    assert loss.old_logprobs_T is not None and loss.old_logprobs_T.tolist() == pytest.approx([-2.9, -0.5, -2.5])


def test_the_first_mini_batch_needs_no_old_logprobs() -> None:
    rollout = batch()
    first, second = (MiniBatch((select(rollout, [index]),), 10, 4) for index in (0, 1))
    zeros_T = torch.zeros(6)
    credit = Advantages(zeros_T, zeros_T, zeros_T)
    scores = Scores(zeros_T, None, None, None)
    make = policy_loss(PolicyAlgorithm(), rollout, scores, credit, OldLogprobs.later, first=first)
    assert make(first.micro[0], first).old_logprobs_T is None
    assert make(second.micro[0], second).old_logprobs_T is not None


def test_supervised_mean() -> None:
    micro = select(batch(), [0, 1])
    loss = nll_loss()(micro, MiniBatch((micro,), num_tokens=8, num_sequences=2))
    assert loss.weights_T.tolist() == [0.125] * 3
