"""What each token counts in the policy's loss: aggregations, masks and corrections against numpy, and over ranks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.importance import importance
from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.algo.statistics import importance_statistics
from prime_megatron.config import ImportanceLevel, ImportanceMode, LossAggregation, PolicyAlgorithm
from prime_megatron.data.batch import select
from prime_megatron.step.loss_weights import LossWeights, loss_weights
from prime_megatron.types import MiniBatch, RolloutBatch, Scores
from tests.support.algo_oracle import Case, cases, make_case, on_ranks

LONGEST = 17
configs = st.builds(
    PolicyAlgorithm,
    loss_aggregation=st.sampled_from(LossAggregation),
    mask_truncated=st.booleans(),
    importance_cap=st.sampled_from([None, 1.3, 3.0]),
    importance_floor=st.sampled_from([0.0, 0.4]),
    importance_level=st.sampled_from(ImportanceLevel),
    importance_mode=st.sampled_from(ImportanceMode),
)


def truncated(case: Case) -> np.ndarray:
    """By content, so that a rank's part has the same."""
    return np.floor(10 * case.prm[:, 0]) % 3 == 0


def batch_of(case: Case) -> RolloutBatch:
    batch = dataclasses.replace(case.batch(), truncated_N=torch.tensor(truncated(case), dtype=torch.bool))
    engine_T = torch.where(batch.response_mask_T, case.pack(case.prm - 0.3 * case.values).float(), 0.0)
    return dataclasses.replace(batch, engine_logprobs_T=engine_T)


def ratio_of(case: Case, i: int, t: int, level: ImportanceLevel) -> float:
    gap = 0.3 * case.values[i, : case.length[i]]
    return float(np.exp({"token": gap[t], "sequence": gap.sum(), "geometric": gap.mean()}[level.value]))


def wanted(case: Case, config: PolicyAlgorithm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights, factors, [above, below] counts) of one mini-batch that holds the whole case."""
    keep, factor = np.zeros_like(case.prm), np.ones_like(case.prm)
    outside = np.zeros(2)
    gone = truncated(case)
    for i in range(case.n):
        for t in range(case.length[i]):
            keep[i, t] = not (config.mask_truncated and gone[i])
            if config.importance_cap is None:
                continue
            ratio, high = ratio_of(case, i, t, config.importance_level), config.importance_cap
            low = 0.0 if config.importance_mode is ImportanceMode.cap else config.importance_floor
            outside += [ratio > high, ratio < low]
            inside = low <= ratio <= high
            factor[i, t] = {"cap": min(ratio, high), "mask": ratio * inside, "reject": 1.0}[
                config.importance_mode.value
            ]
            if config.importance_mode is ImportanceMode.reject:
                keep[i, t] *= inside
    size = keep.sum(1)
    sequences = case.n
    if config.mask_truncated or (config.importance_cap is not None and config.importance_mode is ImportanceMode.reject):
        sequences = max(int((size > 0).sum()), 1)
    divisor = {
        "token_mean": np.full(case.n, max(size.sum(), 1.0)),
        "sequence_mean": sequences * np.maximum(size, 1.0),
        "sequence_sum": np.full(case.n, float(sequences)),
        "constant_length": np.full(case.n, float(sequences * LONGEST)),
    }[config.loss_aggregation.value]
    return keep / divisor[:, None], factor, outside


def one_mini(batch: RolloutBatch, num_tokens: int, num_sequences: int) -> list[MiniBatch]:
    """Two micro-batches, the second half of the sequences first."""
    count = batch.outcome_N.numel()
    picks = [list(range(count // 2, count)), list(range(count // 2))]
    return [MiniBatch(tuple(select(batch, pick) for pick in picks), num_tokens, num_sequences)]


def weigh(case: Case, config: PolicyAlgorithm, total: Case, reduce: Reduction) -> LossWeights:
    batch = batch_of(case)
    scores = Scores(case.pack(case.prm).float(), None, None, None)
    minis = one_mini(batch, int(total.length.sum()), total.n)
    return loss_weights(config, batch, scores, minis, LONGEST, reduce)


@settings(max_examples=150, deadline=None)
@given(cases(), configs)
def test_weights_against_the_loops(case: Case, config: PolicyAlgorithm) -> None:
    got = weigh(case, config, case, LOCAL)
    weights, factors, outside = wanted(case, config)
    np.testing.assert_allclose(case.unpack(got.weights_T), weights, atol=1e-6)
    inside = batch_of(case).response_mask_T
    factors_T = torch.where(inside, got.factors_T, 0.0)
    for i in range(case.n):
        np.testing.assert_allclose(case.unpack(factors_T)[i, : case.length[i]], factors[i, : case.length[i]], rtol=1e-5)
    if config.importance_cap is not None:
        batch = batch_of(case)
        correction = importance(batch, case.pack(case.prm).float(), config)
        figures = finish(importance_statistics(batch, correction))
        tokens = case.length.sum()
        assert figures["policy/importance_capped"] == pytest.approx(outside[0] / tokens)
        assert figures["policy/importance_below"] == pytest.approx(outside[1] / tokens)
        dropped = 0.0 if config.importance_mode is ImportanceMode.cap else outside.sum() / tokens
        assert figures["policy/importance_dropped"] == pytest.approx(dropped)


@pytest.mark.parametrize("aggregation", LossAggregation)
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3], []], [[3, 0], [1, 2]]])
def test_ranks_change_nothing(aggregation: LossAggregation, groups: list[list[int]]) -> None:
    """Truncated and rejected tokens of one rank change the divisor of all."""
    whole = make_case(4, [3, 4, 2, 4], 12)
    config = PolicyAlgorithm(
        loss_aggregation=aggregation, mask_truncated=True, importance_cap=1.5, importance_floor=0.7,
        importance_mode=ImportanceMode.reject,
    )  # fmt: skip
    expected = whole.unpack(weigh(whole, config, whole, LOCAL).weights_T)
    assert 0 < (expected > 0).sum() < whole.length.sum()

    def work(part: Case, reduce: Reduction) -> LossWeights:
        return weigh(part, config, whole, reduce)

    parts = [whole.part(chosen) for chosen in groups]
    for chosen, part, got in zip(groups, parts, on_ranks(parts, work), strict=True):
        order = [i for i in range(whole.n) if whole.group[i] in chosen]
        assert abs(part.unpack(got.weights_T) - expected[order]).max(initial=0.0) <= 1e-7


def test_every_mini_batch_has_its_own_counts() -> None:
    case = make_case(1, [2, 2], 9)
    batch = batch_of(case)
    minis = [MiniBatch((select(batch, pick),), int(case.length[pick].sum()), 2) for pick in ([0, 1], [2, 3])]
    config = PolicyAlgorithm(mask_truncated=True)
    scores = Scores(None, None, None, None)
    weights = case.unpack(loss_weights(config, batch, scores, minis, LONGEST, LOCAL).weights_T)
    for pick in ([0, 1], [2, 3]):
        assert weights[pick].sum() == pytest.approx(0.0 if truncated(case)[pick].all() else 1.0)


def test_an_infinite_ratio_is_held() -> None:
    case = make_case(0, [2], 5)
    plain = batch_of(case)
    batch = dataclasses.replace(plain, engine_logprobs_T=torch.full_like(plain.engine_logprobs_T, -1e3))
    for level in ImportanceLevel:
        config = PolicyAlgorithm(importance_cap=2.0, importance_level=level)
        weights_T = importance(batch, case.pack(case.prm).float(), config).weights_T
        assert (weights_T == torch.where(batch.response_mask_T, 2.0, 1.0)).all()
