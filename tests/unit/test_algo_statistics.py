import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.advantage import compute_advantages
from prime_megatron.algo.importance import importance
from prime_megatron.algo.losses import PolicyLoss
from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.process_reward import process_rewards, sequence_log_ratio
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.algo.statistics import (
    Statistics,
    advantage_statistics,
    importance_statistics,
    prm_statistics,
    response_statistics,
)
from prime_megatron.algo.value_loss import value_loss
from prime_megatron.config import AdvantageAlgorithm, PolicyAlgorithm, PrmAlgorithm
from tests.support.algo_oracle import Case, cases, make_case, on_ranks

BETA = 0.7


def _collect(case: Case, reduce: Reduction) -> Statistics:
    batch, prm = case.batch(), PrmAlgorithm(beta=BETA)
    rewards_T = process_rewards(batch, case.pack(case.prm), case.pack(case.ref), prm, reduce)
    advantages = compute_advantages(batch, rewards_T, AdvantageAlgorithm(), prm, reduce)
    q_N = sequence_log_ratio(case.pack(case.prm), case.pack(case.ref), batch.response_mask_T, batch.sequence_T, case.n)
    prm_part = prm_statistics(q_N, batch.outcome_N, batch.group_N, BETA)
    parts = response_statistics(batch).merged(prm_part).merged(advantage_statistics(batch, advantages))
    return parts.reduced(reduce)


def _pair_accuracy(case: Case, q: list[float]) -> float:
    groups = []
    for g in sorted(set(case.group.tolist())):
        members = [i for i in range(case.n) if case.group[i] == g]
        right = weight = 0.0
        for a in members:
            for b in members:
                gap = case.outcome[a] - case.outcome[b]
                if gap > 0:
                    weight += gap
                    right += gap * (0.5 if q[a] == q[b] else float(q[a] > q[b]))
        if weight:
            groups.append(right / weight)
    return sum(groups) / len(groups) if groups else math.nan


def _calibration_error(p: list[float], o: list[float]) -> float:
    error = 0.0
    for b in range(10):
        inside = [i for i in range(len(p)) if b / 10 <= p[i] < (b + 1) / 10 or (b == 9 and p[i] == 1.0)]
        if inside:
            gap = sum(p[i] for i in inside) / len(inside) - sum(o[i] for i in inside) / len(inside)
            error += abs(gap) * len(inside) / len(p)
    return error


@settings(max_examples=60, deadline=None)
@given(cases())
def test_metrics_against_the_loops(case: Case) -> None:
    metrics = finish(_collect(case, LOCAL))
    q = [float((case.prm - case.ref)[i, : case.length[i]].sum()) for i in range(case.n)]
    p = [1 / (1 + math.exp(-BETA * x)) for x in q]
    outcome = case.outcome.tolist()
    expected = {
        "prm/accuracy": np.mean([(x > 0) == (o > 0.5) for x, o in zip(q, outcome)]),
        "prm/brier": np.mean([(a - o) ** 2 for a, o in zip(p, outcome)]),
        "prm/ce": np.mean([-o * math.log(a) - (1 - o) * math.log(1 - a) for a, o in zip(p, outcome)]),
        "prm/calibration_error": _calibration_error(p, outcome),
        "prm/pair_accuracy": _pair_accuracy(case, q),
        "prm/log_ratio_std": np.std(q),
        "response/length_mean": case.length.mean(),
        "response/length_std": case.length.std(),
        "response/length_max": case.length.max(),
        "response/length_min": case.length.min(),
        "prompt/length_mean": case.prompt_len.mean(),
        "outcome/mean": np.mean(outcome),
        "outcome/std": np.std(outcome),
        "outcome/group_informative": np.mean(
            [len({outcome[i] for i in range(case.n) if case.group[i] == g}) > 1 for g in set(case.group.tolist())]
        ),
        "outcome/group_solved": np.mean(
            [max(outcome[i] for i in range(case.n) if case.group[i] == g) == 1.0 for g in set(case.group.tolist())]
        ),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-6, nan_ok=True), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4))
def test_two_ranks_equal_one(seed: int, cut: int) -> None:
    whole = make_case(seed, [2, 4, 1, 3], 9)
    parts = [whole.part(list(range(cut))), whole.part(list(range(cut, 4)))]  # cut 0 and 4: a rank without sequences
    expected = finish(_collect(whole, LOCAL))
    for statistics in on_ranks(parts, _collect):
        got = finish(statistics)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_a_perfect_and_a_useless_prm() -> None:
    outcome, group = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    perfect = finish(prm_statistics(torch.tensor([50.0, -50.0, 50.0, -50.0]), outcome, group, 1.0))
    assert perfect["prm/accuracy"] == perfect["prm/pair_accuracy"] == 1.0
    assert perfect["prm/calibration_error"] == pytest.approx(0.0, abs=1e-9)
    blank = finish(prm_statistics(torch.zeros(4), outcome, group, 1.0))  # equal to its reference: the first step
    assert blank["prm/accuracy"] == blank["prm/pair_accuracy"] == 0.5
    assert blank["prm/calibration_error"] == 0.0


def test_pair_accuracy_skips_prompts_without_a_difference() -> None:
    outcome, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    metrics = finish(prm_statistics(torch.tensor([1.0, 0.0, 3.0, 4.0]), outcome, group, 1.0))
    assert metrics["prm/pair_accuracy"] == 1.0


def test_loss_statistics_add_over_micro_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, advantages, entropy = (torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(4))
    mask = torch.rand(30, generator=generator) < 0.6

    loss = PolicyLoss(advantages, mask / 30, old)

    def sums(rows: slice) -> dict[str, torch.Tensor]:
        policy = loss.terms(new[rows], entropy[rows], rows).stats
        _, value = value_loss(new[rows], old[rows], advantages[rows], mask[rows], 30, 0.5)
        return {**policy, **value}

    expected = finish(Statistics(sums(slice(None))))
    parts = [sums(slice(0, 7)), sums(slice(7, 7)), sums(slice(7, 30))]
    got = finish(Statistics({key: torch.stack([part[key] for part in parts]).sum() for key in parts[0]}))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    ratio = (new - old)[mask].exp()
    assert expected["policy/ratio_mean"] == pytest.approx(float(ratio.mean()))
    assert expected["policy/ratio_std"] == pytest.approx(float(ratio.std(unbiased=False)))
    assert expected["policy/approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()))
    assert expected["policy/entropy"] == pytest.approx(float(entropy[mask].mean()))
    clipped = ((ratio > 1.2) & (advantages[mask] > 0)) | ((ratio < 0.8) & (advantages[mask] < 0))
    assert expected["policy/clip_fraction"] == pytest.approx(float(clipped.double().mean()))
    target, residual = advantages[mask], (advantages - new)[mask]
    explained = 1 - float(residual.square().mean() / target.var(unbiased=False))
    assert expected["critic/explained_variance"] == pytest.approx(explained)


def test_no_sequences_give_nan_not_an_error() -> None:
    metrics = finish(_collect(make_case(0, [2], 3).part([]), LOCAL))
    assert all(math.isnan(value) for value in metrics.values())


def test_merging_refuses_a_key_twice() -> None:
    part = Statistics({"a": torch.zeros(())})
    with pytest.raises(AssertionError):
        part.merged(part)


def test_importance_metrics_show_how_much_is_cut() -> None:
    case = make_case(1, [3], 8)
    batch = dataclasses.replace(case.batch(), engine_logprobs_T=case.pack(case.ref))
    correction = importance(batch, case.pack(case.prm), PolicyAlgorithm(importance_cap=1.3))
    metrics = finish(importance_statistics(batch, correction))
    ratio = np.concatenate([np.exp((case.prm - case.ref)[i, : case.length[i]]) for i in range(case.n)])
    assert metrics["policy/importance_weight"] == pytest.approx(np.minimum(ratio, 1.3).mean())
    assert metrics["policy/importance_capped"] == pytest.approx((ratio > 1.3).mean())
    assert 0 < metrics["policy/importance_capped"] < 1
