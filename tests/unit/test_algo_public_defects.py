"""Defects of the two public implementations, each with the test that would fail if we had inherited it."""

import numpy as np
import pytest
import torch

from prime_megatron.algo.advantage import compute_advantages
from prime_megatron.algo.losses import PolicyLoss, PrmLoss
from prime_megatron.algo.process_reward import process_rewards
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.config import AdvantageAlgorithm, Granularity, PrmAlgorithm, RewardNorm
from tests.support.algo_oracle import Case, close, make_case, on_ranks

PLAIN = {"norm": RewardNorm.none}


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_the_last_response_token_keeps_its_process_reward(granularity: Granularity, smoothing: float) -> None:
    # Recipe: token granularity fills only the tokens before the last.
    case = make_case(0, [2, 2], 7)
    spike = np.zeros_like(case.prm)
    for i in range(case.n):
        spike[i, case.length[i] - 1] = 1.0 + i
    config = PrmAlgorithm(granularity=granularity, smoothing_lambda=smoothing, scale_by_beta=False, **PLAIN)
    got = case.unpack(process_rewards(case.batch(), case.pack(spike), case.pack(0.0 * spike), config, LOCAL))
    for i in range(case.n):
        assert got[i, case.length[i] - 1] >= 1.0 + i


def test_a_response_of_one_token_has_a_process_reward() -> None:
    case = make_case(0, [2], 1)
    config = PrmAlgorithm(**PLAIN)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL))
    close(got, config.beta * (case.prm - case.ref))


def test_whole_granularity_works_and_sums_the_response() -> None:
    # Recipe: assigns the response's vector to one element and raises.
    case = make_case(1, [3], 9)
    config = PrmAlgorithm(granularity=Granularity.whole, scale_by_beta=False, **PLAIN)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL))
    for i in range(case.n):
        close(got[i, case.length[i] - 1], (case.prm - case.ref)[i, : case.length[i]].sum())
        assert not got[i, : case.length[i] - 1].any()


def test_use_gt_acts_without_smoothing() -> None:
    # Recipe: reads prime_use_gt only when lambda is not 0.
    case = make_case(2, [4], 6)
    config = PrmAlgorithm(use_gt=True, smoothing_lambda=0.0, **PLAIN)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL))
    close(got.sum(1), case.outcome)


def test_the_policy_may_be_the_reference() -> None:
    # Recipe: ref_type=policy raises KeyError. Here the reference is an argument like any other.
    case = make_case(3, [2], 6)
    config = PrmAlgorithm(**PLAIN)
    old_logprobs_T = case.pack(case.values)
    got = case.unpack(process_rewards(case.batch(), case.pack(case.prm), old_logprobs_T, config, LOCAL))
    for i in range(case.n):
        n = case.length[i]
        close(got[i, :n], config.beta * (case.prm - case.values)[i, :n])


def test_batch_norm_is_over_all_ranks() -> None:
    # Both codes: the maximum of the local rank, so that rewards depend on the number of ranks.
    small, large = make_case(4, [2], 6, scale=0.1), make_case(5, [2], 6, scale=10.0)

    def work(case: Case, reduce: Reduction) -> torch.Tensor:
        return process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), PrmAlgorithm(), reduce)

    apart = work(small, LOCAL).abs().max()
    together = on_ranks([small, large], work)[0].abs().max()
    assert float(together) < 0.1 * float(apart)


def test_scores_keep_the_order_of_the_batch() -> None:
    # Recipe with dynamic batching: scores come back in micro-batch order. Here every token is scored in place.
    case = make_case(6, [2, 2], 8)
    config = PrmAlgorithm(**PLAIN)
    whole = case.unpack(process_rewards(case.batch(), case.pack(case.prm), case.pack(case.ref), config, LOCAL))
    for g in range(2):
        part = case.part([g])
        alone = part.unpack(process_rewards(part.batch(), part.pack(part.prm), part.pack(part.ref), config, LOCAL))
        close(whole[case.group == g], alone, 1e-12)


def test_prm_loss_is_the_mean_over_sequences_and_logs_all_micro_batches() -> None:
    # Recipe under dynamic batching scales by the size of a metrics dict; the original logs the last micro-batch.
    case = make_case(7, [2, 2], 6)

    def loss(groups: list[int]) -> tuple[float, float]:
        part = case.part(groups)
        batch, prm_T = part.batch(), part.pack(part.prm)
        terms = PrmLoss(
            part.pack(part.ref), batch.response_mask_T, tuple(batch.cu_seqlens.tolist()), batch.outcome_N.double(),
            0.05, weights_N=torch.full((part.n,), 1.0 / case.n),
        ).terms(prm_T, torch.zeros_like(prm_T), slice(0, prm_T.numel()))  # fmt: skip
        return float(terms.loss), float(terms.stats["prm_loss_sum"])

    whole, parts = loss([0, 1]), [loss([0]), loss([1])]
    q = [float((case.prm - case.ref)[i, : case.length[i]].sum()) for i in range(case.n)]
    mean = np.mean([np.log1p(np.exp(0.05 * x)) - o * 0.05 * x for x, o in zip(q, case.outcome, strict=True)])
    assert whole[0] == pytest.approx(mean, rel=1e-9)
    assert whole[0] == pytest.approx(sum(value for value, _ in parts), abs=1e-12)
    assert whole[1] == pytest.approx(sum(logged for _, logged in parts), abs=1e-12)


def test_a_confidently_wrong_prm_still_learns() -> None:
    # Both codes: sigmoid, then binary cross-entropy, whose gradient vanishes when the sigmoid rounds to 0 or 1.
    everywhere = torch.ones(1, dtype=torch.bool)
    loss = PrmLoss(torch.tensor([-4000.0]), everywhere, (0, 1), torch.zeros(1), 0.05)
    terms = loss.terms(torch.zeros(1), torch.zeros(1), slice(0, 1))
    assert float(terms.dlogprobs_t) == pytest.approx(0.05)
    assert float(terms.loss) == pytest.approx(200.0)


def test_reward_weights_act() -> None:
    # Original: 5/5 is inert; recipe: it cancels in the whitening. Only the ratio can matter, and here it does.
    case = make_case(8, [4], 10)
    rewards = case.pack(case.prm, 0.0)

    def advantages(process: float, outcome: float) -> torch.Tensor:
        config = AdvantageAlgorithm(process_weight=process, outcome_weight=outcome)
        return compute_advantages(case.batch(), rewards, config, PrmAlgorithm(), LOCAL).advantages_T

    close(advantages(5.0, 5.0), advantages(1.0, 1.0), 1e-5)
    assert float((advantages(5.0, 1.0) - advantages(1.0, 1.0)).abs().max()) > 0.01


def test_policy_loss_is_one_token_mean_whatever_the_micro_batches() -> None:
    # Both codes: a mean of micro-batch means, which weights the tokens of short micro-batches more.
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(10, generator=generator, dtype=torch.float64) for _ in range(3))
    loss_of_all = PolicyLoss(advantages, torch.full((10,), 0.1), old)

    def loss(rows: slice) -> float:
        return float(loss_of_all.terms(new[rows], torch.zeros_like(new[rows]), rows).loss)

    assert loss(slice(0, 10)) == pytest.approx(loss(slice(0, 1)) + loss(slice(1, 10)), abs=1e-12)
