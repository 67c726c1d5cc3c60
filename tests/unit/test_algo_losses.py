"""The losses: values against numpy from the papers' formulas, closed forms against autograd of the definition."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.kl import MAX_LOG_RATIO, clamped_ratio, kl_estimate
from prime_megatron.algo.losses import NllLoss, PolicyLoss, PrmLoss
from prime_megatron.algo.value_loss import value_loss
from prime_megatron.config import KlEstimator

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
            "clip_low": 0.2, "clip_high": 0.3, "entropy_coef": 0.1, "kl_coef": 0.2, "kl_estimator": KlEstimator.k3,
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
@given(
    st.integers(0, 10**6), st.sampled_from(KlEstimator), st.sampled_from([0.0, 0.3]), st.booleans(),
    st.sampled_from([None, -100.0, -25.0, -15.0, 30.0]),
)  # fmt: skip
def test_policy_derivatives(seed: int, kind: KlEstimator, coef: float, moved: bool, stray: float | None) -> None:
    """Closed form against autograd of the definition, stray tokens included: on both sides of the clamp."""
    changes = {} if moved else {"old_logprobs_T": None}
    loss = _policy(seed, kl_estimator=kind, kl_coef=coef, entropy_coef=coef, **changes)
    if stray is not None:
        loss.ref_logprobs_T[1] = stray
        if moved:
            loss.old_logprobs_T[2] = stray
    _check_derivatives(loss, _draw(seed + 4, NUM_TOKENS) - 2, _draw(seed + 5, NUM_TOKENS).abs())


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_stray_token_neither_makes_the_loss_infinite_nor_moves_the_others(advantage: float) -> None:
    """Old log-prob -100: a finite loss, no gradient of its own, and the others' gradients stay, to the bit."""
    stray = _policy(3, entropy_coef=0.0, kl_coef=0.0)
    stray.advantages_T[4], stray.weights_T[4] = advantage, 0.5
    plain = _policy(3, entropy_coef=0.0, kl_coef=0.0, advantages_T=stray.advantages_T, weights_T=stray.weights_T)
    stray.old_logprobs_T[4] = -100.0
    logprobs, entropy = _draw(8, NUM_TOKENS) - 2, torch.zeros(NUM_TOKENS)
    terms, others = (loss.terms(logprobs, entropy, slice(0, NUM_TOKENS)) for loss in (stray, plain))
    assert np.isfinite(terms.loss.item()) and all(np.isfinite(value.item()) for value in terms.stats.values())
    assert terms.stats["policy_beyond_clamp_sum"] == 1 and others.stats["policy_beyond_clamp_sum"] == 0
    assert terms.dlogprobs_t[4] == 0
    rest = torch.arange(NUM_TOKENS) != 4
    assert torch.equal(terms.dlogprobs_t[rest], others.dlogprobs_t[rest]) and terms.dlogprobs_t[rest].any()


def test_a_stray_token_of_the_prm_has_a_bounded_gradient() -> None:
    """Reference log-prob -100: linear in Q, so finite without a clamp; at most beta a token; other sequences stay."""
    ref, logprobs = _draw(1, NUM_TOKENS), _draw(2, NUM_TOKENS)
    stray = ref.clone()
    stray[6] = -100.0
    mask, targets = torch.ones(NUM_TOKENS, dtype=torch.bool), torch.tensor([1.0, 0.0, 0.0, 1.0])
    one, two = (PrmLoss(x, mask, EDGES, targets, 0.05).terms(logprobs, logprobs, slice(0, NUM_TOKENS))
                for x in (stray, ref))  # fmt: skip
    assert np.isfinite(one.loss.item()) and one.dlogprobs_t.abs().max() <= 0.05
    others = [0, 1, 2, 3, 4, 9, 10, 11]
    assert torch.equal(one.dlogprobs_t[others], two.dlogprobs_t[others])


def test_the_clamp_changes_only_what_it_clamps() -> None:
    log_ratio = torch.linspace(-60, 60, 241, dtype=torch.float64)
    inside, above = log_ratio <= MAX_LOG_RATIO, log_ratio >= -MAX_LOG_RATIO
    exact = np.exp(log_ratio.numpy())
    np.testing.assert_array_equal(clamped_ratio(log_ratio)[inside].numpy(), torch.exp(log_ratio)[inside].numpy())
    assert (clamped_ratio(log_ratio)[~inside] == np.exp(MAX_LOG_RATIO)).all()
    k3 = 1 / exact - 1 + log_ratio.numpy()
    np.testing.assert_allclose(kl_estimate(log_ratio, KlEstimator.k3)[above].numpy(), k3[above.numpy()], rtol=1e-9)
    assert (kl_estimate(log_ratio, KlEstimator.k3)[~above] == np.exp(MAX_LOG_RATIO) - 1 - MAX_LOG_RATIO).all()


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
    assert terms.loss.item() == pytest.approx((w * (-surrogate - 0.1 * h)).sum(), rel=1e-5)
    low, high = (a < 0) & (ratio < 0.8), (a > 0) & (ratio > 1.3)
    wanted = {
        "num_tokens": valid.sum(), "loss_sum": -surrogate[valid].sum(), "clip_low_sum": low[valid].sum(),
        "clip_high_sum": high[valid].sum(), "beyond_clamp_sum": 0, "ratio_sum": ratio[valid].sum(),
        "kl_old_sum": (ratio - 1 - np.log(ratio))[valid].sum(), "ratio_shift_sum": (ratio - 1)[valid].sum(),
        "ratio_shift_square_sum": ((ratio - 1) ** 2)[valid].sum(), "entropy_sum": h[valid].sum(),
    }  # fmt: skip
    assert low[valid].any() and high[valid].any() and not (low | high)[valid].all()
    assert {k.removeprefix("policy_"): v.item() for k, v in terms.stats.items()} == pytest.approx(wanted, rel=1e-5)


def test_kl_estimators() -> None:
    """Schulman's three, each in its own words: log r, (log r)^2 / 2, (r - 1) - log r with r = ref / policy."""
    new, ref = _draw(0, 50).double(), _draw(1, 50).double()
    r = np.exp((ref - new).numpy())
    wanted = {"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": (r - 1) - np.log(r)}
    for kind, value in wanted.items():
        np.testing.assert_allclose(kl_estimate(new - ref, KlEstimator(kind)).numpy(), value, rtol=1e-9)


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
    assert terms.stats["prm_loss_sum"] == terms.loss
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
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss)


@pytest.mark.parametrize("changes", [{"ref_logprobs_T": None}, {"needs_entropy": False}])
def test_settings_that_do_not_fit_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        _policy(0, **changes)


@pytest.mark.parametrize("estimator", [KlEstimator.k1, KlEstimator.k3])
def test_kl_estimators_are_unbiased(estimator: KlEstimator) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7))
    per_token = kl_estimate(torch.tensor(np.log(p) - np.log(q)), estimator).numpy()
    assert float((p * per_token).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([None, 0.2]))
def test_value_loss_against_the_loop(seed: int, size: int, clip: float | None) -> None:
    new, old, target = (_draw(seed + k, size).double() for k in range(3))
    mask = _draw(seed + 3, size) > -0.5
    new.requires_grad_()
    loss, stats = value_loss(new, old, target, mask, 13, clip)
    expected, clipped = 0.0, 0
    for t in range(size):
        if mask[t]:
            v, o, r = new[t].item(), old[t].item(), target[t].item()
            held = v if clip is None else min(max(v, o - clip), o + clip)
            expected += 0.5 * max((v - r) ** 2, (held - r) ** 2)
            clipped += (held - r) ** 2 > (v - r) ** 2
    assert loss.item() == pytest.approx(expected / 13, rel=1e-9)
    assert stats["value_clipped_sum"].item() == clipped
    loss.backward()
    assert not new.grad[~mask].any()
