import torch

from prime_megatron.algo.prm_loss import sibling_terms
from prime_megatron.config import PrmAlgorithm, PrmLossKind, UpdateOrder


def _config(loss: PrmLossKind, n: int = 4) -> PrmAlgorithm:
    return PrmAlgorithm(loss=loss, bon_n=n, update=UpdateOrder.reverse)


def test_sibling_terms_are_detached() -> None:
    q = torch.randn(4, requires_grad=True)
    outcome, group = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    terms = sibling_terms(q, outcome, group, _config(PrmLossKind.dpo))
    assert terms is not None
    assert not terms.opposite_N.requires_grad


def test_without_an_opposite_there_is_nothing_to_compare_with() -> None:
    """dpo is then cross-entropy on the hard label, and cross-entropy needs no sibling at all."""
    q, group = torch.randn(3), torch.zeros(3, dtype=torch.int64)
    for outcome in (torch.ones(3), torch.zeros(3)):
        terms = sibling_terms(q, outcome, group, _config(PrmLossKind.dpo))
        assert terms is not None
        assert not terms.opposite_N.any() and (terms.weight_N == 1.0).all()
    assert sibling_terms(q, torch.ones(3), group, _config(PrmLossKind.ce)) is None
