import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo import advantage as algo
from prime_megatron.algo.advantage import compute_advantages
from prime_megatron.algo.process_reward import log_ratio, process_rewards
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.config import AdvantageAlgorithm, Estimator, Granularity, LeaveOneOut, PrmAlgorithm
from prime_megatron.types import Advantages
from tests.support.algo_oracle import Case, at_last, cases, close, gae, make_case, on_ranks, returns, whiten

gammas = st.one_of(st.just(1.0), st.floats(0.0, 1.0))


@st.composite
def configs(draw: st.DrawFn) -> AdvantageAlgorithm:
    estimator = draw(st.sampled_from(Estimator))
    gamma = draw(gammas)
    return AdvantageAlgorithm(
        estimator=estimator,
        process_weight=draw(st.sampled_from([0.0, 0.5, 1.0])),
        outcome_weight=draw(st.sampled_from([0.0, 1.0, 2.0])),
        leave_one_out=draw(st.sampled_from(LeaveOneOut)),
        gamma_process=gamma,
        gamma_outcome=gamma if estimator is Estimator.gae else draw(gammas),
        gae_lambda=draw(gammas),
        whiten=draw(st.booleans()),
    )


def _run(
    case: Case, config: AdvantageAlgorithm, prm: PrmAlgorithm, kl: bool, reduce: Reduction
) -> tuple[torch.Tensor, Advantages]:
    batch = case.batch()
    rewards_T = process_rewards(batch, case.pack(case.prm), case.pack(case.ref), prm, reduce)
    return rewards_T, compute_advantages(
        batch,
        rewards_T,
        config,
        prm,
        reduce,
        values_T=case.pack(case.values),
        log_ratio_T=log_ratio(case.pack(case.prm), case.pack(case.ref), batch.response_mask_T),
        kl_T=case.pack(case.kl) if kl else None,
    )


@settings(max_examples=150, deadline=None)
@given(cases(), configs(), st.sampled_from(Granularity), st.booleans())
def test_every_estimator_against_the_loops(
    case: Case, config: AdvantageAlgorithm, granularity: Granularity, kl: bool
) -> None:
    prm = PrmAlgorithm(granularity=granularity)
    rewards_T, got = _run(case, config, prm, kl, LOCAL)
    rewards = case.unpack(rewards_T)
    if config.estimator is Estimator.gae:
        penalty = case.kl if kl else np.zeros_like(case.kl)
        dense = config.process_weight * rewards - penalty
        dense = dense + at_last(case, [config.outcome_weight * o for o in case.outcome])
        advantages = gae(case, dense, config.gamma_process, config.gae_lambda)
        inside = np.arange(case.prm.shape[1])[None, :] < case.length[:, None]
        expected = advantages + np.where(inside, case.values, 0.0)
    else:
        expected = returns(
            case,
            rewards,
            {
                "estimator": config.estimator.value,
                "form": config.leave_one_out.value,
                "w_p": config.process_weight,
                "w_o": config.outcome_weight,
                "g_p": config.gamma_process,
                "g_o": config.gamma_outcome,
                "lam": config.gae_lambda,
                "granularity": granularity.value,
                "beta": prm.beta,
                "kl": kl,
            },
        )
        advantages = expected
    close(case.unpack(got.returns_T), expected)
    if config.whiten or config.estimator is Estimator.reinforce_pp:
        close(case.unpack(got.advantages_T), whiten(case, advantages))
    else:
        close(case.unpack(got.advantages_T), advantages)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), configs(), st.integers(0, 4))
def test_two_ranks_equal_one(seed: int, config: AdvantageAlgorithm, cut: int) -> None:
    whole = make_case(seed, [2, 4, 1, 3], 9)
    parts = [whole.part(list(range(cut))), whole.part(list(range(cut, 4)))]  # cut 0 and 4: a rank without sequences
    prm = PrmAlgorithm()
    got = on_ranks(parts, lambda case, reduce: _run(case, config, prm, True, reduce)[1])
    _, expected = _run(whole, config, prm, True, LOCAL)
    close(torch.cat([part.returns_T for part in got]), expected.returns_T, 1e-9)
    close(torch.cat([part.advantages_T for part in got]), expected.advantages_T)


@pytest.mark.parametrize("form", list(LeaveOneOut))
def test_order_of_sequences_does_not_matter(form: LeaveOneOut) -> None:
    case = make_case(8, [3, 1, 4], 12)
    order = np.random.default_rng(0).permutation(case.n)
    names = list(case.__dataclass_fields__)
    shuffled = Case(**{name: getattr(case, name)[order] for name in names})  # siblings no longer adjacent
    config, prm = AdvantageAlgorithm(leave_one_out=form), PrmAlgorithm()
    straight = case.unpack(_run(case, config, prm, False, LOCAL)[1].advantages_T)
    close(shuffled.unpack(_run(shuffled, config, prm, False, LOCAL)[1].advantages_T), straight[order], 1e-9)


@pytest.mark.parametrize("estimator", list(Estimator))
@pytest.mark.parametrize("form", list(LeaveOneOut))
def test_a_group_of_one_passes_its_rewards_through(estimator: Estimator, form: LeaveOneOut) -> None:
    case = make_case(9, [1, 1], 6)
    prm = PrmAlgorithm()
    config = AdvantageAlgorithm(estimator=estimator, leave_one_out=form, whiten=False)
    _, got = _run(case, config, prm, True, LOCAL)
    assert torch.isfinite(got.advantages_T).all()
    if estimator in (Estimator.rloo, Estimator.grpo):
        plain = AdvantageAlgorithm(estimator=Estimator.reinforce, whiten=False)
        close(got.returns_T, _run(case, plain, prm, True, LOCAL)[1].returns_T, 1e-12)


def test_leave_one_out_forms_agree_in_the_mean_and_differ_by_their_gain() -> None:
    case = make_case(10, [4, 4], 15)
    prm = PrmAlgorithm()

    def rewards(form: LeaveOneOut) -> np.ndarray:
        config = AdvantageAlgorithm(leave_one_out=form, outcome_weight=0.0, gamma_process=0.0, whiten=False)
        return case.unpack(_run(case, config, prm, False, LOCAL)[1].returns_T)  # gamma 0: returns are r~ themselves

    code, paper = rewards(LeaveOneOut.code), rewards(LeaveOneOut.paper)
    for i in range(case.n):
        c, p = code[i, : case.length[i]], paper[i, : case.length[i]]
        close(c.mean(), p.mean(), 1e-9)
        close(c - c.mean(), (p - p.mean()) * 4 / 3, 1e-9)


def test_outcome_only_needs_no_process_rewards() -> None:
    case = make_case(12, [4], 6)
    config = AdvantageAlgorithm(process_weight=0.0, whiten=False)
    got = compute_advantages(case.batch(), None, config, PrmAlgorithm(), LOCAL)
    assert got.advantages_T.dtype == torch.float32
    assert not got.process_rewards_T.any()
    others = [(case.outcome.sum() - o) / 3 for o in case.outcome]
    per_sequence = case.unpack(got.advantages_T)
    for i in range(4):  # gamma 1: the same number on every token
        close(per_sequence[i, : case.length[i]], [case.outcome[i] - others[i]] * case.length[i])


def test_two_gammas_act_on_their_own_source() -> None:
    case = make_case(13, [2], 8)
    prm = PrmAlgorithm()
    base = {"estimator": Estimator.reinforce, "whiten": False}

    def total(**changes: float) -> torch.Tensor:
        return _run(case, AdvantageAlgorithm(**base, **changes), prm, False, LOCAL)[1].returns_T

    both = total(gamma_process=0.9, gamma_outcome=0.5)
    close(both, total(gamma_process=0.9, outcome_weight=0.0) + total(gamma_outcome=0.5, process_weight=0.0), 1e-9)


def test_whitening_has_zero_mean_and_unit_bessel_variance() -> None:
    case = make_case(14, [4, 4], 30)
    batch = case.batch()
    _, got = _run(case, AdvantageAlgorithm(), PrmAlgorithm(), False, LOCAL)
    kept = got.advantages_T[batch.response_mask_T]
    assert abs(float(kept.mean())) < 1e-9
    assert float(kept.var()) == pytest.approx(1.0, rel=1e-5)
    assert not got.advantages_T[~batch.response_mask_T].any()


def test_whitening_of_one_token_or_none_is_zero() -> None:
    one = algo.whiten(torch.tensor([5.0, 3.0]), torch.tensor([False, True]), LOCAL)
    assert one.tolist() == [0.0, 0.0]
    assert algo.whiten(torch.zeros(0), torch.zeros(0, dtype=torch.bool), LOCAL).shape == (0,)


def test_whitening_does_not_cancel_at_a_large_mean() -> None:
    values = torch.tensor([1e6, 1e6 + 1.0, 1e6 + 2.0], dtype=torch.float64)
    got = algo.whiten(values, torch.ones(3, dtype=torch.bool), LOCAL)
    close(got, [-1.0, 0.0, 1.0])


def test_advantages_carry_no_gradient() -> None:
    case = make_case(15, [2], 5)
    rewards = case.pack(case.prm, 0.0).requires_grad_()
    got = compute_advantages(case.batch(), rewards, AdvantageAlgorithm(), PrmAlgorithm(), LOCAL)
    assert not got.advantages_T.requires_grad
    assert not got.returns_T.requires_grad
