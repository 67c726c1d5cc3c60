import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.prm_loss import loss_coefficients, prm_loss, sequence_losses, sibling_terms
from prime_megatron.config import PrmAlgorithm, PrmLossKind, UpdateOrder
from tests.support.algo_oracle import Case, cases, close, make_case


def _config(loss: PrmLossKind, beta: float = 0.05, n: int = 4) -> PrmAlgorithm:
    return PrmAlgorithm(loss=loss, beta=beta, bon_n=n, update=UpdateOrder.reverse)


def _oracle(case: Case, scores: list[float], q: list[float], loss: str, beta: float, n: int) -> list[float]:
    """Per-sequence loss; scores are the detached Q of the reverse order, q the Q of the update's own forward."""
    out = []
    for i in range(case.n):
        o = case.outcome[i]
        if loss == "ce":
            p = 1.0 / (1.0 + math.exp(-beta * q[i]))
            out.append(-(o * math.log(p) + (1.0 - o) * math.log(1.0 - p)))
            continue
        siblings = case.siblings(i)
        opposite = [scores[j] for j in siblings if (case.outcome[j] < o if o > 0 else case.outcome[j] > o)]
        other = sum(opposite) / len(opposite) if opposite else 0.0
        sign = 1.0 if o > 0 else -1.0
        value = math.log1p(math.exp(-sign * beta * (q[i] - other)))
        if loss == "bon_acc":
            below = sum(case.outcome[j] <= o for j in siblings) / len(siblings)
            value *= n * below ** (n - 1)
        elif loss == "bon_rm":
            below = sum(scores[j] <= scores[i] for j in siblings) / len(siblings)
            value *= n * below ** (n - 1)
        out.append(value)
    return out


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(PrmLossKind), st.floats(0.01, 1.0), st.integers(1, 6), st.integers(1, 50))
def test_every_loss_against_the_loops(case: Case, loss: PrmLossKind, beta: float, n: int, num_sequences: int) -> None:
    config = _config(loss, beta, n)
    batch = case.batch()
    scores = [(case.values - case.ref)[i, : case.length[i]].sum() for i in range(case.n)]
    q = [(case.prm - case.ref)[i, : case.length[i]].sum() for i in range(case.n)]
    terms = sibling_terms(torch.tensor(scores, dtype=torch.float64), batch.outcome_N, batch.group_N, config)
    got, stats = prm_loss(
        case.pack(case.prm), case.pack(case.ref), batch.response_mask_T, batch.cu_seqlens, batch.outcome_N, terms,
        config, num_sequences,
    )  # fmt: skip
    expected = sum(_oracle(case, scores, q, loss.value, beta, n))
    close(got, expected / num_sequences)
    close(stats["prm_loss_sum"], expected)
    assert float(stats["prm_num"]) == case.n
    right = sum(0.5 if x == 0 else (x > 0) == (o > 0.5) for x, o in zip(q, case.outcome))
    assert float(stats["prm_correct_sum"]) == right


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(PrmLossKind))
def test_closed_form_gradient_equals_autograd(case: Case, loss: PrmLossKind) -> None:
    config = _config(loss, 0.3)
    batch = case.batch()
    logprobs_T = case.pack(case.prm).requires_grad_()
    scores = torch.tensor([(case.prm - case.ref)[i, : case.length[i]].sum() for i in range(case.n)])
    terms = sibling_terms(scores, batch.outcome_N, batch.group_N, config)
    value, _ = prm_loss(
        logprobs_T, case.pack(case.ref), batch.response_mask_T, batch.cu_seqlens, batch.outcome_N, terms, config, 7
    )
    value.backward()
    slope_N = loss_coefficients(scores, batch.outcome_N, terms, config, 7)
    assert logprobs_T.grad is not None
    close(logprobs_T.grad, torch.where(batch.response_mask_T, slope_N[batch.sequence_T], 0.0), 1e-9)


@pytest.mark.parametrize("loss", list(PrmLossKind))
def test_micro_batches_add_up(loss: PrmLossKind) -> None:
    config = _config(loss, 0.4)
    case = make_case(11, [4, 3, 2], 10)
    batch = case.batch()
    scores = torch.tensor([(case.prm - case.ref)[i, : case.length[i]].sum() for i in range(case.n)])
    terms = sibling_terms(scores, batch.outcome_N, batch.group_N, config)
    whole, _ = prm_loss(
        case.pack(case.prm), case.pack(case.ref), batch.response_mask_T, batch.cu_seqlens, batch.outcome_N, terms,
        config, case.n,
    )  # fmt: skip
    total = 0.0
    for index in ([0, 5], [1], [8, 2, 3], [4, 6, 7], []):  # siblings parted, any order, an empty one
        rows = torch.tensor(index, dtype=torch.int64)
        names = ("group", "prompt_len", "length", "outcome", "prm", "ref", "values", "kl", "step_end")
        part = Case(**{name: getattr(case, name)[index] if index else getattr(case, name)[:0] for name in names})
        mask = torch.tensor([t >= p for p, n in zip(part.prompt_len, part.length) for t in range(p + n)])
        cu = torch.tensor([0, *np.cumsum(part.prompt_len + part.length).tolist()])
        value, _ = prm_loss(
            part.pack(part.prm), part.pack(part.ref), mask.bool(), cu, batch.outcome_N[rows],
            None if terms is None else terms.select(rows), config, case.n,
        )  # fmt: skip
        total += float(value)
    assert total == pytest.approx(float(whole), abs=1e-9)


def test_ce_neither_saturates_nor_overflows() -> None:
    # sigmoid first, then log, gives inf or 0 (with clamping: no gradient) at these scores.
    q = torch.tensor([2000.0, -2000.0], requires_grad=True)
    outcome = torch.tensor([0.0, 1.0])
    losses = sequence_losses(q, outcome, None, _config(PrmLossKind.ce, 1.0))
    losses.sum().backward()
    assert losses.tolist() == [2000.0, 2000.0]
    assert q.grad is not None
    assert q.grad.tolist() == [1.0, -1.0]


def test_ce_takes_fractional_outcomes() -> None:
    config = _config(PrmLossKind.ce, 1.0)
    at_best = torch.tensor([math.log(0.3 / 0.7)])  # sigmoid = 0.3: the gradient vanishes at the outcome
    assert abs(float(loss_coefficients(at_best, torch.tensor([0.3]), None, config, 1))) < 1e-7


def test_sibling_terms_are_detached() -> None:
    q = torch.randn(4, requires_grad=True)
    outcome, group = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    terms = sibling_terms(q, outcome, group, _config(PrmLossKind.dpo))
    assert terms is not None
    assert not terms.opposite_N.requires_grad


def test_dpo_without_an_opposite_is_the_hard_label_cross_entropy() -> None:
    q = torch.randn(3, dtype=torch.float64)
    for outcome in (torch.ones(3), torch.zeros(3)):
        config = _config(PrmLossKind.dpo, 0.7)
        terms = sibling_terms(q, outcome, torch.zeros(3, dtype=torch.int64), config)
        close(
            sequence_losses(q, outcome, terms, config),
            sequence_losses(q, outcome, None, _config(PrmLossKind.ce, 0.7)),
            1e-12,
        )


def test_a_prm_equal_to_its_reference_is_half_right() -> None:
    case = make_case(2, [4], 6)
    batch = case.batch()
    _, stats = prm_loss(
        case.pack(case.ref), case.pack(case.ref), batch.response_mask_T, batch.cu_seqlens, batch.outcome_N, None,
        PrmAlgorithm(), 4,
    )  # fmt: skip
    assert float(stats["prm_correct_sum"]) == 2.0
    assert float(stats["prm_loss_sum"]) == pytest.approx(4.0 * math.log(2.0))
