"""The closed-form losses: values against numpy from the papers' formulas, derivatives against autograd."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.losses import NllLoss, PolicyLoss, PrmLoss, kl_penalty
from prime_megatron.kernels.logprob import fused_logprob_loss

NUM_TOKENS = 12
EDGES = (0, 5, 5, 9, 12)  # with an empty sequence


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _policy(seed: int, **changes: object) -> PolicyLoss:
    weights = (_draw(seed + 1, NUM_TOKENS) > -0.5).float() * 0.5
    return PolicyLoss(
        **{
            "advantages_T": _draw(seed, NUM_TOKENS), "weights_T": weights,
            "old_logprobs_T": _draw(seed + 2, NUM_TOKENS) - 2,
            "clip_low": 0.2, "clip_high": 0.3, "entropy_coef": 0.1, "kl_coef": 0.2, "kl_kind": "k3",
            "ref_logprobs_T": _draw(seed + 3, NUM_TOKENS) - 2,
        } | changes
    )  # fmt: skip


def _check_derivatives(loss: object, logprobs: torch.Tensor, entropy: torch.Tensor) -> None:
    logprobs, entropy = logprobs.double().requires_grad_(), entropy.double().requires_grad_()
    value = loss.plain(logprobs, entropy)
    dlogprobs, dentropy = torch.autograd.grad(value, (logprobs, entropy), allow_unused=True)
    terms = loss.terms(logprobs.detach(), entropy.detach(), slice(0, NUM_TOKENS))
    torch.testing.assert_close(terms.loss, value.detach(), rtol=1e-6, atol=1e-9, check_dtype=False)
    torch.testing.assert_close(terms.dlogprobs_t, dlogprobs, rtol=1e-6, atol=1e-9, check_dtype=False)
    if dentropy is None or not dentropy.any():
        assert terms.dentropy_t is None or not terms.dentropy_t.any()
    else:
        torch.testing.assert_close(terms.dentropy_t, dentropy, rtol=1e-6, atol=1e-9, check_dtype=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["k1", "k2", "k3"]), st.sampled_from([0.0, 0.3]), st.booleans())
def test_policy_derivatives(seed: int, kind: str, coef: float, moved: bool) -> None:
    changes = {"kl_kind": kind, "kl_coef": coef, "entropy_coef": coef} | ({} if moved else {"old_logprobs_T": None})
    _check_derivatives(_policy(seed, **changes), _draw(seed + 4, NUM_TOKENS) - 2, _draw(seed + 5, NUM_TOKENS).abs())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_prm_derivatives(seed: int, weighted: bool) -> None:
    extra = {"baselines_N": _draw(seed + 1, 4), "weights_N": _draw(seed + 2, 4).abs()} if weighted else {}
    loss = PrmLoss(
        _draw(seed, NUM_TOKENS), _draw(seed + 3, NUM_TOKENS) > -0.5, EDGES,
        torch.rand(4, generator=torch.Generator().manual_seed(seed)), 0.7, **extra,
    )  # fmt: skip
    _check_derivatives(loss, _draw(seed + 4, NUM_TOKENS), torch.zeros(NUM_TOKENS))


def test_nll_derivatives() -> None:
    _check_derivatives(NllLoss(_draw(0, NUM_TOKENS).abs()), _draw(1, NUM_TOKENS), torch.zeros(NUM_TOKENS))


def test_policy_loss_is_ppos() -> None:
    """PPO eq. 7 as min of surrogates, with its statistics, in numpy."""
    loss = _policy(7, ref_logprobs_T=None, kl_coef=0.0)
    logprobs, entropy = _draw(8, NUM_TOKENS) - 2, _draw(9, NUM_TOKENS).abs()
    a, w, old, new, h = (
        x.double().numpy() for x in (loss.advantages_T, loss.weights_T, loss.old_logprobs_T, logprobs, entropy)
    )
    ratio = np.exp(new - old)
    surrogate = np.minimum(a * ratio, a * np.clip(ratio, 0.8, 1.3))
    terms = loss.terms(logprobs, entropy, slice(0, NUM_TOKENS))
    valid = w > 0
    clipped = ((a > 0) & (ratio > 1.3)) | ((a < 0) & (ratio < 0.8))
    assert terms.loss.item() == pytest.approx((w * (-surrogate - 0.1 * h)).sum(), rel=1e-5)
    wanted = {
        "num_tokens": valid.sum(), "policy_loss": -surrogate[valid].sum(), "clipped": clipped[valid].sum(),
        "approx_kl": (old - new)[valid].sum(), "ratio": ratio[valid].sum(), "entropy": h[valid].sum(),
    }  # fmt: skip
    assert clipped[valid].any() and not clipped[valid].all()
    assert {k: v.item() for k, v in terms.stats.items()} == pytest.approx(wanted, rel=1e-5)


def test_kl_estimators() -> None:
    """Schulman's three, each in its own words: log r, (log r)^2 / 2, (r - 1) - log r with r = ref / policy."""
    new, ref = _draw(0, 50).double(), _draw(1, 50).double()
    r = np.exp((ref - new).numpy())
    wanted = {"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": (r - 1) - np.log(r)}
    for kind, value in wanted.items():
        np.testing.assert_allclose(kl_penalty(new, ref, kind).numpy(), value, rtol=1e-9)


def test_prm_loss_is_primes_cross_entropy() -> None:
    """Mean over sequences of BCE(sigmoid(beta * sum q), o), o fractional, in numpy; then a score that saturates."""
    ref, logprobs = _draw(1, NUM_TOKENS), _draw(2, NUM_TOKENS)
    mask = torch.tensor([1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    targets = torch.tensor([1.0, 0.0, 0.25, 0.0])
    q = np.where(mask.numpy(), (logprobs - ref).double().numpy(), 0)
    total = np.array([q[a:b].sum() for a, b in pairwise(EDGES)])
    p, o = 1 / (1 + np.exp(-0.05 * total)), targets.double().numpy()
    wanted = -(o * np.log(p) + (1 - o) * np.log(1 - p)).sum()
    loss = PrmLoss(ref, mask, EDGES, targets, 0.05)
    terms = loss.terms(logprobs, torch.zeros(NUM_TOKENS), slice(0, NUM_TOKENS))
    assert terms.loss.item() == pytest.approx(wanted, rel=1e-6)
    assert terms.stats["num_sequences"] == 4
    assert terms.stats["prm_correct"].item() == ((total > 0) == (o > 0.5)).sum()
    saturated = PrmLoss(ref - 1e5, mask, EDGES, torch.zeros(4), 1.0)
    terms = saturated.terms(logprobs, torch.zeros(NUM_TOKENS), slice(0, NUM_TOKENS))
    assert terms.loss.item() == pytest.approx(9e5, rel=1e-4)  # -log(1 - sigmoid(x)) is x, not log 0


def test_chunks_of_whole_sequences_add_up() -> None:
    loss = PrmLoss(_draw(1, NUM_TOKENS), _draw(3, NUM_TOKENS) > -0.5, EDGES, torch.tensor([1.0, 0, 0.5, 1]), 0.3)
    logprobs, entropy = _draw(2, NUM_TOKENS), torch.zeros(NUM_TOKENS)
    whole = loss.terms(logprobs, entropy, slice(0, NUM_TOKENS))
    parts = [loss.terms(logprobs[a:b], entropy[a:b], slice(a, b)) for a, b in ((0, 5), (5, 12))]
    torch.testing.assert_close(torch.cat([p.dlogprobs_t for p in parts]), whole.dlogprobs_t)
    # The empty second sequence is scored once, whichever chunk it touches.
    assert sum(p.stats["num_sequences"].item() for p in parts) == 4
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)


@pytest.mark.parametrize("changes", [{"kl_kind": "k4"}, {"ref_logprobs_T": None}, {"needs_entropy": False}])
def test_settings_that_do_not_fit_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        _policy(0, **changes)


@pytest.mark.parametrize("impl", ["torch", "naive"])
@pytest.mark.parametrize("kind", ["nll", "policy", "prm"])
def test_no_tokens_are_a_loss_of_zero_with_all_its_statistics(kind: str, impl: str) -> None:
    """A data-parallel rank that has no prompt of a mini-batch takes part with nothing in its hands."""
    none = torch.zeros(0)
    makers = {
        "nll": lambda n: NllLoss(torch.ones(n)),
        "policy": lambda n: PolicyLoss(torch.ones(n), torch.ones(n), torch.zeros(n), entropy_coef=0.1),
        "prm": lambda n: PrmLoss(torch.zeros(n), torch.ones(n, dtype=torch.bool), (0, n) if n else (0,),
                                 torch.ones(1)[: min(n, 1)], 0.5, weights_N=torch.ones(1)[: min(n, 1)]),
    }  # fmt: skip
    weight = torch.nn.Parameter(_draw(0, 8, 4))
    some = fused_logprob_loss(_draw(1, 3, 4), weight, torch.tensor([1, 2, 3]), makers[kind](3), impl=impl)
    hidden = torch.zeros(0, 4, requires_grad=True)
    result = fused_logprob_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), makers[kind](0), impl=impl)
    assert result.stats.keys() == some.stats.keys() and all(float(value) == 0.0 for value in result.stats.values())
    result.loss.backward()
    assert result.loss == 0.0 and hidden.grad.shape == (0, 4) and not weight.grad.any()
    assert result.logprobs_T.shape == none.shape
