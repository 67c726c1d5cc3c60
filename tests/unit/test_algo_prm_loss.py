import pytest
import torch

from prime_megatron.algo.losses import PrmLoss
from prime_megatron.algo.prm_loss import sibling_terms
from prime_megatron.config import PrmAlgorithm, PrmLossKind, UpdateOrder


def _config(loss: PrmLossKind, n: int = 4) -> PrmAlgorithm:
    return PrmAlgorithm(loss=loss, bon_n=n, update=UpdateOrder.reverse)


def test_sibling_terms_are_detached() -> None:
    q = torch.randn(4, requires_grad=True)
    outcome, group = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    terms = sibling_terms(q, outcome, group, _config(PrmLossKind.dpo))
    assert terms is not None
    assert not terms.baseline_N.requires_grad


def test_without_an_opposite_there_is_nothing_to_compare_with() -> None:
    """dpo is then cross-entropy on the hard label, and cross-entropy needs no sibling at all."""
    q, group = torch.randn(3), torch.zeros(3, dtype=torch.int64)
    for outcome in (torch.ones(3), torch.zeros(3)):
        terms = sibling_terms(q, outcome, group, _config(PrmLossKind.dpo))
        assert terms is not None
        assert not terms.baseline_N.any() and (terms.weight_N == 1.0).all()
    assert sibling_terms(q, torch.ones(3), group, _config(PrmLossKind.ce)) is None


def test_an_intercept_makes_a_prompt_s_responses_cancel() -> None:
    """At Q = 0 the gradients of the siblings add up to 0, and those of a prompt that all pass or all fail vanish."""
    outcome, group = torch.tensor([0.0, 0.0, 0.25, 1.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    terms = sibling_terms(None, outcome, group, _config(PrmLossKind.ce_intercept))
    assert terms is not None and (terms.weight_N == 1.0).all()
    loss = PrmLoss(torch.zeros(8), torch.ones(8, dtype=torch.bool), tuple(range(9)), outcome, 0.05, terms.baseline_N)
    slope = loss.terms(torch.zeros(8), torch.zeros(8), slice(0, 8)).dlogprobs_t / 0.05
    assert slope[:4].tolist() == pytest.approx([0.3125, 0.3125, 0.0625, -0.6875], abs=1e-6)
    assert slope[4:].abs().max() <= 2e-6
