"""What process rewards say of themselves, against numpy loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.diagnostics import largest_share, reward_statistics
from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.reduction import LOCAL, Reduction
from tests.support.algo_oracle import Case, cases, make_case, on_ranks


def share_of_largest(case: Case, rewards: np.ndarray) -> float:
    sizes = sorted((abs(rewards[i, t]) for i in range(case.n) for t in range(case.length[i])), reverse=True)
    count = math.ceil(0.01 * len(sizes))
    return sum(sizes[:count]) / sum(sizes) if sum(sizes) else 0.0


def figures(case: Case, rewards: np.ndarray, reduce: Reduction = LOCAL) -> dict[str, float]:
    # The oracle's log-probs are of noise: 5 nats lower, about a third of them is below 1 %.
    ref_T = case.pack(case.ref - 3.0)
    return finish(reward_statistics(case.batch(), case.pack(rewards, 0.0), ref_T).reduced(reduce))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_figures_against_the_loops(case: Case) -> None:
    rewards = case.values
    tokens = [(i, t) for i in range(case.n) for t in range(case.length[i])]
    total = sum(abs(rewards[at]) for at in tokens)
    improbable = sum(abs(rewards[at]) for at in tokens if math.exp(case.ref[at] - 3.0) < 0.01)
    a, b = [], []
    for i in range(case.n):
        mean = [np.mean(rewards[j, : case.length[j]]) for j in case.siblings(i)]
        a.append(np.mean(rewards[i, : case.length[i]]) - np.mean(mean))
        b.append(case.outcome[i] - np.mean([case.outcome[j] for j in case.siblings(i)]))
    spread = math.sqrt(np.dot(a, a) * np.dot(b, b))
    got = figures(case, rewards)
    assert got["process_reward/improbable_share"] == pytest.approx(improbable / total, abs=1e-6)
    if spread > 1e-9:
        correlation = np.dot(a, b) / spread
        assert got["process_reward/outcome_correlation"] == pytest.approx(correlation, abs=1e-6)
        centred = [i for i in range(case.n) if len(case.siblings(i)) > 1]
        if len(centred) == case.n and len(set(case.group.tolist())) == 1:
            assert correlation == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400), st.sampled_from([0.0, 1.0, 1e4]))
def test_the_largest_of_all_ranks(seed: int, longest: int, heavy: float) -> None:
    case = make_case(seed, [3, 2, 4], longest)
    rewards = np.random.default_rng(seed).normal(size=case.prm.shape).round(1)  # many are equal
    rewards[0, 0] += heavy
    rewards = rewards.astype(np.float32).astype(np.float64)
    wanted = share_of_largest(case, rewards)
    packed = case.pack(rewards)
    assert largest_share(packed, case.batch().response_mask_T, LOCAL) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("groups", [[[0, 1, 2], []], [[2, 0], [1]]])
def test_ranks_change_nothing(groups: list[list[int]]) -> None:
    whole = make_case(3, [3, 2, 4], 60)
    wanted = {**figures(whole, whole.values), "largest": share_of_largest(whole, whole.values.astype(np.float32))}

    def work(part: Case, reduce: Reduction) -> dict[str, float]:
        share = largest_share(part.pack(part.values), part.batch().response_mask_T, reduce)
        return {**figures(part, part.values, reduce), "largest": share}

    for got in on_ranks([whole.part(chosen) for chosen in groups], work):
        assert got == pytest.approx(wanted, abs=1e-6)


def test_no_reward_is_no_share() -> None:
    """A PRM equal to its reference."""
    case = make_case(0, [4, 4], 9)
    zeros = np.zeros_like(case.prm)
    assert largest_share(case.pack(zeros), case.batch().response_mask_T, LOCAL) == 0.0
    got = figures(case, zeros)
    assert got["process_reward/improbable_share"] == got["process_reward/outcome_correlation"] == 0.0


def test_one_token_that_holds_everything_is_seen() -> None:
    case = make_case(0, [4, 4], 60)
    spike, even = np.zeros_like(case.prm), np.ones_like(case.prm)
    spike[2, 0] = -7.0
    mask = case.batch().response_mask_T
    assert largest_share(case.pack(spike), mask, LOCAL) == 1.0
    assert largest_share(case.pack(even), mask, LOCAL) == pytest.approx(0.01, rel=0.3)


def test_bits_order_as_the_floats_do() -> None:
    assert (torch.tensor([0.0, 1e-40, 1.0, 3.4e38]).view(torch.int32).diff() > 0).all()
