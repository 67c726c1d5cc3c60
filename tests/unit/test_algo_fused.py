"""The fused head's closed-form losses are the algorithm's: same loss, same gradient."""

import pytest
import torch

from prime_megatron.algo.policy_loss import policy_loss
from prime_megatron.algo.prm_loss import prm_loss, sibling_terms
from prime_megatron.config import KlEstimator, KlPlace, PolicyAlgorithm, PrmAlgorithm, PrmLossKind, UpdateOrder
from prime_megatron.kernels import losses as fused
from tests.support.algo_oracle import close, make_case


@pytest.mark.parametrize("loss", list(PrmLossKind))
def test_prm_loss(loss: PrmLossKind) -> None:
    config = PrmAlgorithm(loss=loss, beta=0.3, bon_n=3, update=UpdateOrder.reverse)
    case = make_case(0, [4, 3, 1], 9)
    batch = case.batch()
    scores = torch.tensor([(case.values - case.ref)[i, : case.length[i]].sum() for i in range(case.n)])
    terms = sibling_terms(scores, batch.outcome_N, batch.group_N, config)
    prm, ref = case.pack(case.prm).requires_grad_(), case.pack(case.ref)
    value, stats = prm_loss(prm, ref, batch.response_mask_T, batch.cu_seqlens, batch.outcome_N, terms, config, case.n)
    value.backward()
    hard = loss is not PrmLossKind.ce
    weights_N = torch.ones(case.n) if terms is None else terms.weight_N
    closed = fused.PrmLoss(
        ref_logprobs_T=ref,
        mask_T=batch.response_mask_T,
        boundaries=tuple(batch.cu_seqlens.tolist()),
        targets_N=((batch.outcome_N > 0.0).double() if hard else batch.outcome_N.double()),
        beta=config.beta,
        baselines_N=None if terms is None else terms.opposite_N,
        weights_N=weights_N / case.n,
    ).terms(prm.detach(), torch.zeros_like(ref), slice(0, ref.numel()))
    close(closed.loss, value.detach())
    assert prm.grad is not None
    close(closed.dlogprobs_t, prm.grad)
    close(closed.stats["prm_loss"], stats["prm_loss_sum"] / case.n)


@pytest.mark.parametrize("estimator", list(KlEstimator))
@pytest.mark.parametrize("own", [True, False])
def test_policy_loss(estimator: KlEstimator, own: bool) -> None:
    config = PolicyAlgorithm(
        clip_low=0.1, clip_high=0.3, entropy_coef=0.02, kl_place=KlPlace.loss, kl_coef=0.1, kl_estimator=estimator
    )
    generator = torch.Generator().manual_seed(1)
    new, noise, ref, advantages = (torch.randn(40, dtype=torch.float64, generator=generator) for _ in range(4))
    entropy = torch.rand(40, dtype=torch.float64, generator=generator).requires_grad_()
    new.requires_grad_()
    old = None if own else new.detach() + 0.3 * noise
    everything = torch.ones(40, dtype=torch.bool)
    value, stats = policy_loss(new, old, advantages, everything, 40, config, entropy_T=entropy, ref_logprobs_T=ref)
    value.backward()
    closed = fused.PolicyLoss(
        advantages_T=advantages,
        weights_T=torch.full((40,), 1.0 / 40, dtype=torch.float64),
        old_logprobs_T=old,
        clip_low=0.1,
        clip_high=0.3,
        entropy_coef=0.02,
        kl_coef=0.1,
        kl_kind=estimator.value,
        ref_logprobs_T=ref,
    ).terms(new.detach(), entropy.detach(), slice(0, 40))
    close(closed.loss, value.detach())
    assert new.grad is not None
    assert entropy.grad is not None
    close(closed.dlogprobs_t, new.grad)
    close(closed.dentropy_t, entropy.grad)
    close(closed.stats["clipped"], stats["policy_clip_low_sum"] + stats["policy_clip_high_sum"])
    close(closed.stats["ref_kl"], stats["policy_kl_ref_sum"])
