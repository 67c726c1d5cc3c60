import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.kl import kl_estimate
from prime_megatron.algo.policy_loss import policy_loss
from prime_megatron.algo.value_loss import value_loss
from prime_megatron.config import KlEstimator, KlPlace, PolicyAlgorithm
from tests.support.algo_oracle import close

configs = st.builds(
    PolicyAlgorithm,
    clip_low=st.floats(0.05, 0.5),
    clip_high=st.floats(0.05, 0.5),
    entropy_coef=st.sampled_from([0.0, 0.01, -0.1]),
    kl_place=st.sampled_from(KlPlace),
    kl_coef=st.sampled_from([0.0, 0.1]),
    kl_estimator=st.sampled_from(KlEstimator),
    importance_cap=st.sampled_from([None, 0.8, 2.0]),
)


def _inputs(seed: int, size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(size, dtype=torch.float64, generator=generator)

    new = noise(1.0) - 2.0
    return {
        "new": new,
        "old": new + noise(0.3),
        "ref": new + noise(0.5),
        "engine": new + noise(0.3),
        "advantage": noise(1.0),
        "entropy": noise(1.0).abs(),
        "mask": torch.rand(size, generator=generator) < 0.7,
    }


def _oracle(x: dict[str, torch.Tensor], config: PolicyAlgorithm, num_tokens: int) -> tuple[float, dict[str, float]]:
    total = {"loss": 0.0, "low": 0.0, "high": 0.0, "kl": 0.0, "entropy": 0.0, "capped": 0.0, "ratio": 0.0}
    for t in range(len(x["new"])):
        if not x["mask"][t]:
            continue
        new, old, ref, engine, a, h = (float(x[k][t]) for k in ("new", "old", "ref", "engine", "advantage", "entropy"))
        ratio = math.exp(new - old)
        low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
        loss = -min(a * ratio, a * min(max(ratio, low), high))
        if config.importance_cap is not None:
            raw = math.exp(old - engine)
            loss *= min(raw, config.importance_cap)
            total["capped"] += raw > config.importance_cap
        d = new - ref
        kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[config.kl_estimator.value]
        loss -= config.entropy_coef * h
        if config.kl_place is KlPlace.loss:
            loss += config.kl_coef * kl
        total["loss"] += loss
        total["low"] += ratio < low and a < 0
        total["high"] += ratio > high and a > 0
        total["kl"] += kl
        total["entropy"] += h
        total["ratio"] += ratio
    return total["loss"] / num_tokens, total


def _loss(
    x: dict[str, torch.Tensor], config: PolicyAlgorithm, num_tokens: int, rows: slice = slice(None)
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return policy_loss(
        x["new"][rows],
        x["old"][rows],
        x["advantage"][rows],
        x["mask"][rows],
        num_tokens,
        config,
        entropy_T=x["entropy"][rows],
        ref_logprobs_T=x["ref"][rows],
        engine_logprobs_T=x["engine"][rows],
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), configs)
def test_every_setting_against_the_loop(seed: int, size: int, config: PolicyAlgorithm) -> None:
    x = _inputs(seed, size)
    got, stats = _loss(x, config, 17)
    expected, total = _oracle(x, config, 17)
    close(got, expected)
    close(stats["policy_clip_low_sum"], total["low"])
    close(stats["policy_clip_high_sum"], total["high"])
    close(stats["policy_kl_ref_sum"], total["kl"])
    close(stats["policy_entropy_sum"], total["entropy"])
    close(stats["policy_ratio_sum"], total["ratio"])
    close(stats["policy_num_tokens"], int(x["mask"].sum()))
    if config.importance_cap is not None:
        close(stats["policy_weight_capped_sum"], total["capped"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), configs, st.integers(0, 20))
def test_micro_batches_add_up(seed: int, config: PolicyAlgorithm, cut: int) -> None:
    x = _inputs(seed, 20)
    whole, whole_stats = _loss(x, config, 20)
    first, first_stats = _loss(x, config, 20, slice(0, cut))
    second, second_stats = _loss(x, config, 20, slice(cut, 20))
    close(first + second, whole, 1e-12)
    assert first_stats.keys() == second_stats.keys() == whole_stats.keys()
    for name, value in whole_stats.items():
        close(first_stats[name] + second_stats[name], value, 1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), configs)
def test_gradient_against_finite_differences(seed: int, config: PolicyAlgorithm) -> None:
    x = _inputs(seed, 8)

    def f(new: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return _loss({**x, "new": new, "entropy": entropy}, config, 8)[0]

    assert torch.autograd.gradcheck(f, (x["new"].requires_grad_(), x["entropy"].requires_grad_()), eps=1e-8, atol=1e-5)


def test_without_old_logprobs_the_gradient_is_reinforce() -> None:
    x = _inputs(0, 12)
    new = x["new"].requires_grad_()
    loss, stats = policy_loss(new, None, x["advantage"], x["mask"], 12, PolicyAlgorithm())
    loss.backward()
    expected = torch.where(x["mask"], -x["advantage"] / 12, 0.0)
    assert new.grad is not None
    close(new.grad, expected, 1e-12)
    assert float(stats["policy_clip_low_sum"] + stats["policy_clip_high_sum"]) == 0.0
    assert float(stats["policy_kl_old_sum"]) == 0.0


def test_nan_outside_the_mask_does_no_harm() -> None:
    x = _inputs(1, 10)
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    dirty = {k: v if k == "mask" else torch.where(x["mask"], v, nan) for k, v in x.items()}
    dirty["new"].requires_grad_()
    config = PolicyAlgorithm(entropy_coef=0.1, kl_place=KlPlace.loss, kl_coef=0.1, importance_cap=2.0)
    loss, stats = _loss(dirty, config, 10)
    loss.backward()
    close(loss.detach(), _oracle(x, config, 10)[0])
    assert dirty["new"].grad is not None
    assert torch.isfinite(dirty["new"].grad).all()
    assert all(torch.isfinite(value) for value in stats.values())


def test_a_stray_token_cannot_make_the_loss_infinite() -> None:
    new = torch.tensor([0.0, -1.0], requires_grad=True)
    old = torch.tensor([-1000.0, -1.0])
    loss, _ = policy_loss(new, old, torch.tensor([-1.0, 1.0]), torch.ones(2, dtype=torch.bool), 2, PolicyAlgorithm())
    loss.backward()
    assert torch.isfinite(loss)
    assert new.grad is not None
    assert torch.isfinite(new.grad).all()


@pytest.mark.parametrize("estimator", [KlEstimator.k1, KlEstimator.k3])
def test_kl_estimators_are_unbiased(estimator: KlEstimator) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7))
    per_token = kl_estimate(torch.tensor(np.log(p)), torch.tensor(np.log(q)), estimator).numpy()
    assert float((p * per_token).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([None, 0.2]))
def test_value_loss_against_the_loop(seed: int, size: int, clip: float | None) -> None:
    x = _inputs(seed, size)
    new, old, target = x["new"].requires_grad_(), x["old"].clone(), x["advantage"]
    loss, stats = value_loss(new, old, target, x["mask"], 13, clip)
    expected, clipped = 0.0, 0
    for t in range(size):
        if x["mask"][t]:
            v, o, r = new[t].item(), old[t].item(), target[t].item()
            held = v if clip is None else min(max(v, o - clip), o + clip)
            expected += 0.5 * max((v - r) ** 2, (held - r) ** 2)
            clipped += (held - r) ** 2 > (v - r) ** 2
    close(loss.detach(), expected / 13)
    close(stats["value_clipped_sum"], clipped)
    loss.backward()
    assert new.grad is not None
    assert not new.grad[~x["mask"]].any()
