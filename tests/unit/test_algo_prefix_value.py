"""The prefix-value loss: closed form, definition and numpy agree on any shape; what its parts do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.prefix_value import PrefixValueLoss
from prime_megatron.algo.prm_loss import difficulty_weights, intercepts
from prime_megatron.config import PrmLossKind, PrmObjective
from tests.support.algo_oracle import Case, cases, close, prefix_value_loss
from tests.support.algo_oracle import difficulty_boundaries as expected_boundaries
from tests.support.algo_oracle import difficulty_weights as expected_weights

MARGIN = 0.4


def loss_of(case: Case, beta: float) -> PrefixValueLoss:
    """On the response tokens of all of a case's sequences, one after the other; float64 throughout."""
    outcome_N, group_N = torch.tensor(case.outcome), torch.tensor(case.group)
    objective = PrmObjective(loss=PrmLossKind.prefix_value, adaptive_boundary=True)
    return PrefixValueLoss(
        ref_logprobs_T=rows(case, case.ref),
        boundaries=(0, *np.cumsum(case.length).tolist()),
        targets_N=outcome_N,
        beta=beta,
        margin=MARGIN,
        intercepts_N=intercepts(outcome_N, group_N, objective),
        weights_N=difficulty_weights(outcome_N, group_N) / case.n,
    )


def rows(case: Case, padded: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.concatenate([padded[i, : case.length[i]] for i in range(case.n)]))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.05, 1.0, 10.0]))
def test_value_and_gradient_against_the_loops(case: Case, beta: float) -> None:
    loss, logprobs_T = loss_of(case, beta), rows(case, case.prm)
    terms = loss.terms(logprobs_T, logprobs_T, slice(0, logprobs_T.numel()))
    boundary, weight, q = expected_boundaries(case), expected_weights(case), case.prm - case.ref
    wanted = sum(weight[i] * prefix_value_loss(case, i, q, beta, MARGIN, boundary[i]) / case.n for i in range(case.n))
    close(float(terms.loss), wanted)
    assert terms.stats["prm_loss_sum"] == terms.loss
    slope = []
    for i in range(case.n):
        length, o = case.length[i], case.outcome[i]
        logits = [beta * sum(q[i, : t + 1]) / (t + 1) + boundary[i] for t in range(length)]
        pull = [(1 - o) / (1 + np.exp(-MARGIN - z)) - o / (1 + np.exp(z - MARGIN)) for z in logits]
        factor = weight[i] / case.n / length * beta
        slope += [factor * sum(pull[t] / (t + 1) for t in range(s, length)) for s in range(length)]
    close(terms.dlogprobs_t, slope)
    leaf_T = logprobs_T.clone().requires_grad_()
    plain = loss.plain(leaf_T, leaf_T)
    close(float(plain.detach()), wanted)
    (gradient_T,) = torch.autograd.grad(plain, leaf_T)
    close(gradient_T, slope)


@settings(max_examples=20, deadline=None)
@given(cases())
def test_chunks_of_whole_sequences_add_up(case: Case) -> None:
    loss, logprobs_T = loss_of(case, 2.0), rows(case, case.prm)
    whole = loss.terms(logprobs_T, logprobs_T, slice(0, logprobs_T.numel()))
    cut = loss.boundaries[case.n // 2]
    chunks = [slice(0, cut), slice(cut, loss.boundaries[-1])]
    parts = [loss.terms(logprobs_T[chunk], logprobs_T[chunk], chunk) for chunk in chunks]
    close(float(sum(part.loss for part in parts)), float(whole.loss))
    close(torch.cat([part.dlogprobs_t for part in parts]), whole.dlogprobs_t)


def test_no_sequence_is_no_loss() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    loss = PrefixValueLoss(torch.zeros(0), (0,), torch.zeros(0), 1.0, 0.5)
    assert float(loss.terms(nothing.detach(), nothing.detach(), slice(0, 0)).loss) == 0.0
    (gradient,) = torch.autograd.grad(loss.plain(nothing, nothing), nothing)
    assert gradient.shape == (0,)


def test_the_neutral_point_is_the_margin() -> None:
    """A right response of value m / beta and a wrong one of -m / beta cost log 2, each."""
    q_T = torch.tensor([0.25, 0.25, 0.25, -0.25, -0.25])
    loss = PrefixValueLoss(torch.zeros(5), (0, 3, 5), torch.tensor([1.0, 0.0]), beta=2.0, margin=0.5)
    assert float(loss.plain(q_T, q_T)) == pytest.approx(2 * np.log(2), rel=1e-6)


def test_difficulty_weights_and_boundaries_of_a_prompt() -> None:
    """One right of four: it weighs 2, a wrong one 2/3; all alike weigh 1; the boundary is the prompt's log odds."""
    outcome_N = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    group_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    close(difficulty_weights(outcome_N, group_N), [2, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])
    objective = PrmObjective(loss=PrmLossKind.prefix_value, adaptive_boundary=True)
    found = intercepts(outcome_N, group_N, objective)
    assert found is not None
    close(found[:4], [-np.log(3)] * 4)
    assert [float(found[4]), float(found[6])] == pytest.approx([13.8155, -13.8155], abs=1e-4)
    assert intercepts(outcome_N, group_N, PrmObjective(loss=PrmLossKind.prefix_value)) is None
