import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.process_reward import (
    floored_log_ratio,
    log_ratio,
    process_rewards,
    reward_mask,
    sequence_log_ratio,
)
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.config import Granularity, PrmAlgorithm, RewardNorm
from prime_megatron.types import RolloutBatch
from tests.support.algo_oracle import Case, cases, close, make_case, on_ranks
from tests.support.algo_oracle import process_rewards as expected_rewards

configs = st.builds(
    PrmAlgorithm,
    beta=st.floats(0.01, 2.0),
    scale_by_beta=st.booleans(),
    use_gt=st.booleans(),
    smoothing_lambda=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    granularity=st.sampled_from(Granularity),
    norm=st.sampled_from(RewardNorm),
    ratio_floor=st.sampled_from([0.0, 1e-6, 0.05, 0.5]),
    softmin_temperature=st.sampled_from([None, 0.01, 0.1, 3.0]),
)


def _expected(case: Case, config: PrmAlgorithm) -> np.ndarray:
    return expected_rewards(
        case,
        config.beta,
        config.scale_by_beta,
        config.use_gt,
        config.smoothing_lambda,
        config.granularity.value,
        config.norm is RewardNorm.batch_norm,
        config.ratio_floor,
        config.softmin_temperature,
    )


@settings(max_examples=80, deadline=None)
@given(cases(), configs)
def test_every_setting_against_the_loops(case: Case, config: PrmAlgorithm) -> None:
    got = process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL)
    close(case.unpack(got), _expected(case, config))


def test_float32_is_as_good_as_its_inputs() -> None:
    case = make_case(3, [4, 4], 300)
    config = PrmAlgorithm()
    rounded = make_case(3, [4, 4], 300)
    prm, ref = case.pack(case.prm).float(), case.pack(case.ref).float()
    rounded = Case(**{**rounded.__dict__, "prm": rounded.prm.astype(np.float32), "ref": rounded.ref.astype(np.float32)})
    got = process_rewards(case.batch(), prm, ref, config, LOCAL)
    assert got.dtype == torch.float32
    close(case.unpack(got), _expected(rounded, config))


def test_prompt_tokens_count_for_nothing() -> None:
    case = make_case(0, [2, 2], 9)
    batch = case.batch()
    zero = process_rewards(batch, case.pack(case.prm, 0.0), case.pack(case.ref, 0.0), PrmAlgorithm(), LOCAL)
    odd = process_rewards(batch, case.pack(case.prm, float("nan")), case.pack(case.ref, 5.0), PrmAlgorithm(), LOCAL)
    assert torch.equal(zero, odd)


@pytest.mark.parametrize("ref", [-1.0, -30.0, -1e4])
def test_a_floor_bounds_the_reward_of_an_impossible_token(ref: float) -> None:
    """Of a token that the PRM holds certain: at most log((1 + e) / e), whatever the reference says; -inf too."""
    mask = torch.ones(1, dtype=torch.bool)
    prm, floor = torch.zeros(1), 0.05
    for low in (ref, -float("inf")):
        bounded = floored_log_ratio(prm, torch.full((1,), low), mask, floor).item()
        assert bounded == pytest.approx(np.log(1.05 / (np.exp(low) + 0.05)), rel=1e-6)
        assert bounded <= np.log(1.05 / 0.05) + 1e-6
    assert floored_log_ratio(prm, torch.full((1,), ref), mask, 0.0).item() == -ref


def test_equal_scores_have_no_reward_above_the_floor_either() -> None:
    logprobs = -torch.rand(500) * 30
    assert not floored_log_ratio(logprobs, logprobs.clone(), torch.ones(500, dtype=torch.bool), 0.05).any()


def test_use_gt_makes_the_sequence_sum_to_the_outcome() -> None:
    case = make_case(1, [4], 12, binary=False)
    config = PrmAlgorithm(use_gt=True, norm=RewardNorm.none)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL))
    close(got.sum(1), case.outcome)


def test_batch_norm_bounds_every_return_by_one() -> None:
    case = make_case(2, [4, 4], 50, scale=10.0)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), PrmAlgorithm(), LOCAL))
    returns = np.abs(np.flip(np.cumsum(np.flip(got, 1), 1), 1))
    assert 0.999 < returns.max() <= 1.0


def test_batch_norm_of_a_prm_equal_to_its_reference_is_zero() -> None:
    case = make_case(2, [4], 5)
    got = process_rewards(case.batch(), case.pack(case.ref), case.pack(case.ref), PrmAlgorithm(), LOCAL)
    assert not got.any()


@pytest.mark.parametrize("granularity", list(Granularity))
def test_granularity_moves_rewards_and_keeps_their_sum(granularity: Granularity) -> None:
    case = make_case(4, [3, 2], 20)
    config = PrmAlgorithm(granularity=granularity, norm=RewardNorm.none)
    batch = case.batch()
    got_T = process_rewards(batch, case.pack(case.prm), case.pack(case.ref), config, LOCAL)
    assert not got_T[~reward_mask(batch, granularity)].any()
    total = np.array([(case.prm - case.ref)[i, : case.length[i]].sum() for i in range(case.n)])
    close(case.unpack(got_T).sum(1), config.beta * total)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), configs, st.integers(0, 4))
def test_two_ranks_equal_one(seed: int, config: PrmAlgorithm, cut: int) -> None:
    whole = make_case(seed, [2, 3, 1, 2], 9)
    parts = [whole.part(list(range(cut))), whole.part(list(range(cut, 4)))]  # cut 0 and 4: a rank without sequences

    def work(case: Case, reduce: Reduction) -> torch.Tensor:
        return process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, reduce)

    close(torch.cat(on_ranks(parts, work)), work(whole, LOCAL))


def test_log_ratio_is_differentiable_and_sums_per_sequence() -> None:
    case = make_case(5, [2, 2], 6)
    batch: RolloutBatch = case.batch()
    prm = case.pack(case.prm).requires_grad_()
    q_T = log_ratio(prm, case.pack(case.ref), batch.response_mask_T)
    q_N = sequence_log_ratio(prm, case.pack(case.ref), batch.response_mask_T, batch.sequence_T, 4)
    close(q_N.detach(), [q_T[batch.sequence_T == i].sum().item() for i in range(4)])
    q_N.sum().backward()
    assert prm.grad is not None
    assert torch.equal(prm.grad, batch.response_mask_T.double())


def test_min_form_tends_to_the_least_step() -> None:
    """The rewards of a response add up to its least step as the temperature falls, to their mean as it rises."""
    case = make_case(4, [3, 3], 15)
    batch, scores = case.batch(), (case.pack(case.prm), case.pack(case.ref))

    def totals(temperature: float | None) -> tuple[np.ndarray, list[np.ndarray]]:
        config = PrmAlgorithm(
            beta=1.0, norm=RewardNorm.none, granularity=Granularity.step, softmin_temperature=temperature
        )
        rewards = case.unpack(process_rewards(batch, *scores, config, LOCAL))
        return rewards.sum(1), [row[ends] for row, ends in zip(rewards, ends_of(case), strict=True)]

    _, steps = totals(None)
    close(totals(1e-4)[0], [row.min() for row in steps])
    close(totals(1e6)[0], [row.mean() for row in steps], 1e-4)


def ends_of(case: Case) -> list[np.ndarray]:
    """Places of the steps' last tokens."""
    return [
        np.array([t for t in range(case.length[i]) if case.step_end[i, t] or t == case.length[i] - 1])
        for i in range(case.n)
    ]
