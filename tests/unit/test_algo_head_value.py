"""A head's values, rewards and losses against loops over lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from prime_megatron.algo.head_value import beginning_weights, head_loss, head_values, response_logits
from prime_megatron.algo.process_reward import process_rewards
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import PrmAlgorithm, PrmLossKind, RewardNorm
from tests.support.algo_oracle import Case, cases, close


def logits_of(case: Case) -> tuple[torch.Tensor, list[list[float]]]:
    """Logits s_0 .. s_L of every sequence, packed as a head gives them, and as lists."""
    batch = case.batch()
    rng = np.random.default_rng(case.n)
    rows = [list(rng.normal(0.0, 3.0, size=case.length[i] + 1)) for i in range(case.n)]
    packed = torch.zeros(batch.tokens_T.numel(), dtype=torch.float64)
    for i, end in enumerate(batch.cu_seqlens.tolist()[1:]):
        packed[end - len(rows[i]) : end] = torch.tensor(rows[i], dtype=torch.float64)
    return packed, rows


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_rewards_are_steps_of_the_value(case: Case) -> None:
    packed, rows = logits_of(case)
    batch = case.batch()
    config = PrmAlgorithm(norm=RewardNorm.none, scale_by_beta=False)
    rewards_T = process_rewards(batch, *head_values(packed), config, LOCAL)
    wanted = np.zeros_like(case.prm)
    for i, row in enumerate(rows):
        for t in range(case.length[i]):
            wanted[i, t] = sigmoid(row[t + 1]) - sigmoid(row[t])
    close(case.unpack(rewards_T), wanted)
    assert response_logits(packed, batch).tolist() == [row[-1] for row in rows]


@pytest.mark.parametrize("loss", [PrmLossKind.prefix_ce, PrmLossKind.last_ce])
@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_losses(loss: PrmLossKind, case: Case) -> None:
    packed, rows = logits_of(case)
    batch = case.batch()
    packed.requires_grad_()
    weights_T = beginning_weights(batch, loss).double() / case.n
    value, stats = head_loss(packed, batch.outcome_N.double()[batch.sequence_T], weights_T)
    (slope_T,) = torch.autograd.grad(value, packed)
    total, slopes = 0.0, torch.zeros_like(slope_T)
    for i, (row, end) in enumerate(zip(rows, batch.cu_seqlens.tolist()[1:], strict=True)):
        o = float(case.outcome[i])
        chosen = row if loss is PrmLossKind.prefix_ce else row[-1:]
        for place, s in enumerate(chosen):
            p = sigmoid(s)
            total -= (o * math.log(p) + (1 - o) * math.log(1 - p)) / len(chosen) / case.n
            slopes[end - len(chosen) + place] = (p - o) / len(chosen) / case.n
    assert value.item() == pytest.approx(total, rel=1e-6, abs=1e-9)
    assert stats["prm_loss_sum"].item() == value.item()
    torch.testing.assert_close(slope_T, slopes, rtol=1e-6, atol=1e-9)
