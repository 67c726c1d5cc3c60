"""The losses that the roles learn: the formulas on the right rows, one mean over the counts of the mini-batch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from prime_megatron.algo.prm_loss import sibling_terms
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import KlEstimator, KlPlace, PolicyAlgorithm, PrmAlgorithm, PrmLossKind, UpdateOrder
from prime_megatron.data.batch import select
from prime_megatron.step.loss_weights import LossWeights, loss_weights
from prime_megatron.step.losses import critic_loss, nll_loss, policy_loss, prm_loss
from prime_megatron.step.plan import OldLogprobs
from prime_megatron.types import Advantages, MiniBatch, RolloutBatch, Scores
from tests.support.algo_oracle import Case, difficulty_boundaries, difficulty_weights, make_case, prefix_value_loss

MASK = [False, True, True, False, False, True]
ENGINE = torch.tensor([0.0, -1.0, -2.0, 0.0, 0.0, -3.0])


def batch() -> RolloutBatch:
    mask_T = torch.tensor(MASK)
    return RolloutBatch(
        tokens_T=torch.arange(6),
        cu_seqlens=torch.tensor([0, 3, 6]),
        response_mask_T=mask_T,
        group_N=torch.tensor([0, 0]),
        outcome_N=torch.tensor([1.0, 0.0]),
        truncated_N=torch.tensor([False, False]),
        version_N=torch.tensor([0, 0]),
        engine_logprobs_T=ENGINE,
        step_end_T=mask_T,
        num_tokens=10,
        num_sequences=4,
    )


@pytest.mark.parametrize("cap", [None, 1.5])
def test_policy_mean_and_importance_weights(cap: float | None) -> None:
    rollout = batch()
    micro = select(rollout, [1, 0])  # rows: token 5, then tokens 1 and 2
    mini = MiniBatch((micro,), num_tokens=10, num_sequences=4)
    old_T = torch.tensor([0.0, -0.5, -2.5, 0.0, 0.0, -2.9])
    scores = Scores(old_T, None, None, None)
    advantages_T = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, -3.0])
    credit = Advantages(advantages_T, advantages_T, advantages_T)
    config = PolicyAlgorithm(importance_cap=cap)
    weighed = loss_weights(config, rollout, scores, [mini], 100, LOCAL)
    loss = policy_loss(config, scores, credit, weighed, OldLogprobs.all, first=mini)(micro, mini)
    weights = [1.0, 1.0, 1.0] if cap is None else [min(2.718281828**gap, cap) for gap in (0.1, 0.5, -0.5)]
    assert loss.weights_T.tolist() == pytest.approx([0.1] * 3)
    assert loss.advantages_T.tolist() == pytest.approx([a * w for a, w in zip((-3.0, 1.0, 2.0), weights, strict=True)])
    assert loss.old_logprobs_T is not None and loss.old_logprobs_T.tolist() == pytest.approx([-2.9, -0.5, -2.5])


def test_the_first_mini_batch_needs_no_old_logprobs() -> None:
    rollout = batch()
    first, second = (MiniBatch((select(rollout, [index]),), 10, 4) for index in (0, 1))
    zeros_T = torch.zeros(6)
    credit, weights = Advantages(zeros_T, zeros_T, zeros_T), LossWeights(zeros_T, zeros_T)
    scores = Scores(zeros_T, None, None, None)
    make = policy_loss(PolicyAlgorithm(), scores, credit, weights, OldLogprobs.later, first=first)
    assert make(first.micro[0], first).old_logprobs_T is None
    assert make(second.micro[0], second).old_logprobs_T is not None


def test_supervised_mean() -> None:
    micro = select(batch(), [0, 1])
    loss = nll_loss()(micro, MiniBatch((micro,), num_tokens=8, num_sequences=2))
    assert loss.weights_T.tolist() == [0.125] * 3


@dataclass(frozen=True)
class Drawn:
    """A batch of a case, its log-probs by name, float32 [T], and micro-batches that cut it across groups."""

    case: Case
    rollout: RolloutBatch
    values: dict[str, torch.Tensor]
    minis: tuple[MiniBatch, ...]


def drawn(seed: int) -> Drawn:
    """Ten sequences of three groups in two mini-batches of two micro-batches each, siblings parted, one padded."""
    case = make_case(seed, [4, 3, 3], 9, binary=False)
    draw = np.random.default_rng(seed)
    padded = {"new": case.prm, "ref": case.ref, "advantage": case.values, "entropy": np.abs(case.values)}
    padded |= {name: case.prm + 0.4 * draw.normal(size=case.prm.shape) for name in ("old", "engine")}
    values = {name: case.pack(value).float() for name, value in padded.items()}
    batch = dataclasses.replace(case.batch(), engine_logprobs_T=values["engine"])
    picks = ([[0, 5], [9, 1, 4]], [[8, 2, 3], [6, 7]])
    minis = tuple(
        MiniBatch(
            tuple(select(batch, pick, padded=pick[0] == 8) for pick in mini),
            num_tokens=sum(int(case.length[i]) for pick in mini for i in pick),
            num_sequences=sum(len(pick) for pick in mini),
        )
        for mini in picks
    )
    return Drawn(case, batch, values, minis)


def learned(make: Any, it: Drawn, mini: MiniBatch, of: str) -> tuple[float, torch.Tensor]:
    """A mini-batch's loss, and its gradient at every token of the batch, added up over its micro-batches."""
    total, slope_T = 0.0, torch.zeros_like(it.values[of])
    for micro in mini.micro:
        at = micro.source_S[micro.response_mask_S]
        terms = make(micro, mini).terms(it.values[of][at], it.values["entropy"][at], slice(0, at.numel()))
        total += float(terms.loss)
        slope_T[at] += terms.dlogprobs_t
    return total, slope_T


def members(mini: MiniBatch) -> list[int]:
    return [index for micro in mini.micro for index in micro.sequence_index.tolist()]


def numeric(function: Any, values: np.ndarray, at: tuple[int, int]) -> float:
    """The derivative of a float64 function by central differences."""
    up, down = values.copy(), values.copy()
    up[at] += 1e-5
    down[at] -= 1e-5
    return (function(up) - function(down)) / 2e-5


@pytest.mark.parametrize("cap", [None, 1.2])
@pytest.mark.parametrize("estimator", list(KlEstimator))
def test_policy_loss_against_the_formula(cap: float | None, estimator: KlEstimator) -> None:
    """mean over the mini-batch of w * max(-A r, -A clip r) - c_H H + c_KL KL, with autograd's and numpy's gradient."""
    it = drawn(3)
    config = PolicyAlgorithm(
        clip_low=0.1, clip_high=0.3, entropy_coef=0.02, kl_place=KlPlace.loss, kl_coef=0.1, kl_estimator=estimator,
        importance_cap=cap,
    )  # fmt: skip
    scores = Scores(it.values["old"], None, it.values["ref"], None)
    credit = Advantages(*[it.values["advantage"]] * 3)
    weights = loss_weights(config, it.rollout, scores, it.minis, 100, LOCAL)
    make = policy_loss(config, scores, credit, weights, OldLogprobs.all, first=it.minis[0])
    x = {name: it.case.unpack(torch.where(it.rollout.response_mask_T, value, 0.0)) for name, value in it.values.items()}
    for mini in it.minis:
        tokens = [(i, t) for i in members(mini) for t in range(it.case.length[i])]

        def wanted(new: np.ndarray, tokens: list[tuple[int, int]] = tokens) -> float:
            total = 0.0
            for at in tokens:
                a, ratio, d = x["advantage"][at], np.exp(new[at] - x["old"][at]), new[at] - x["ref"][at]
                loss = -min(a * ratio, a * min(max(ratio, 0.9), 1.3))
                if cap is not None:
                    loss *= min(np.exp(x["old"][at] - x["engine"][at]), cap)
                total += loss - 0.02 * x["entropy"][at]
                total += 0.1 * {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[estimator.value]
            return total / len(tokens)

        loss, slope_T = learned(make, it, mini, "new")
        assert loss == pytest.approx(wanted(x["new"]), rel=1e-5)
        slope = it.case.unpack(slope_T)
        for at in tokens[:12]:
            assert slope[at] == pytest.approx(numeric(wanted, x["new"], at), rel=1e-3, abs=1e-6), at
        assert int((slope != 0).sum()) <= len(tokens)


@pytest.mark.parametrize("loss", [kind for kind in PrmLossKind if kind is not PrmLossKind.prefix_value])
def test_prm_losses_against_the_formulas(loss: PrmLossKind) -> None:
    """Mean over the mini-batch's sequences of every loss of the table in algo/prm_loss.py, siblings of the batch."""
    it, beta, n = drawn(5), 0.3, 3
    config = PrmAlgorithm(loss=loss, beta=beta, bon_n=n, update=UpdateOrder.reverse)
    case, mask_T = it.case, it.rollout.response_mask_T
    scored = [float((case.values - case.ref)[i, : case.length[i]].sum()) for i in range(case.n)]
    siblings = sibling_terms(torch.tensor(scored), it.rollout.outcome_N, it.rollout.group_N, config)
    make = prm_loss(config, it.rollout, it.values["ref"], siblings)
    prm = case.unpack(torch.where(mask_T, it.values["new"], 0.0))
    ref = case.unpack(torch.where(mask_T, it.values["ref"], 0.0))

    def one(i: int, q: float) -> float:
        o, group = case.outcome[i], case.siblings(i)
        if loss in (PrmLossKind.ce, PrmLossKind.ce_intercept):
            mean = np.mean([case.outcome[j] for j in group]) if loss is PrmLossKind.ce_intercept else 0.5
            mean = min(max(mean, 1e-6), 1 - 1e-6)
            p = 1 / (1 + (1 - mean) / mean * np.exp(-beta * q))
            return -(o * np.log(p) + (1 - o) * np.log(1 - p))
        opposite = [scored[j] for j in group if (case.outcome[j] < o if o > 0 else case.outcome[j] > o)]
        margin = (1 if o > 0 else -1) * beta * (q - (sum(opposite) / len(opposite) if opposite else 0.0))
        below = {
            PrmLossKind.bon_acc: [case.outcome[j] <= o for j in group],
            PrmLossKind.bon_rm: [scored[j] <= scored[i] for j in group],
        }
        weight = n * np.mean(below[loss]) ** (n - 1) if loss in below else 1.0
        return weight * np.log1p(np.exp(-margin))

    for mini in it.minis:

        def wanted(values: np.ndarray, mini: MiniBatch = mini) -> float:
            return float(np.mean([one(i, (values - ref)[i, : case.length[i]].sum()) for i in members(mini)]))

        total, slope_T = learned(make, it, mini, "new")
        assert total == pytest.approx(wanted(prm), rel=1e-5)
        slope = case.unpack(slope_T)
        for i in members(mini):
            for t in {0, int(case.length[i]) - 1}:
                assert slope[i, t] == pytest.approx(numeric(wanted, prm, (i, t)), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("given", [{}, {"margin": 0.7, "adaptive_boundary": True}, {"difficulty_weights": True}])
def test_prefix_value_loss_against_the_formula(given: dict[str, Any]) -> None:
    """Mean over the mini-batch's sequences, siblings of the whole batch, whatever micro-batch a sequence is in."""
    it = drawn(6)
    config = PrmAlgorithm(loss=PrmLossKind.prefix_value, beta=2.0, **given)
    case, mask_T = it.case, it.rollout.response_mask_T
    make = prm_loss(
        config, it.rollout, it.values["ref"], sibling_terms(None, it.rollout.outcome_N, it.rollout.group_N, config)
    )
    prm, ref = (case.unpack(torch.where(mask_T, it.values[name], 0.0)) for name in ("new", "ref"))
    boundary = difficulty_boundaries(case) if config.adaptive_boundary else [0.0] * case.n
    weight = difficulty_weights(case) if config.difficulty_weights else [1.0] * case.n
    for mini in it.minis:

        def wanted(values: np.ndarray, mini: MiniBatch = mini) -> float:
            margin = given.get("margin", 1.0)
            rows = [
                weight[i] * prefix_value_loss(case, i, values - ref, 2.0, margin, boundary[i]) for i in members(mini)
            ]
            return sum(rows) / len(rows)

        total, slope_T = learned(make, it, mini, "new")
        assert total == pytest.approx(wanted(prm), rel=1e-6)
        slope = case.unpack(slope_T)
        for i in members(mini):
            for t in range(case.length[i]):
                assert slope[i, t] == pytest.approx(numeric(wanted, prm, (i, t)), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_critic_loss_against_the_formula(clip: float | None) -> None:
    it = drawn(7)
    make = critic_loss(it.values["old"], it.values["advantage"], clip)
    x = {name: it.case.unpack(torch.where(it.rollout.response_mask_T, value, 0.0)) for name, value in it.values.items()}
    for mini in it.minis:
        tokens = [(i, t) for i in members(mini) for t in range(it.case.length[i])]
        wanted = 0.0
        for at in tokens:
            value, old, target = x["new"][at], x["old"][at], x["advantage"][at]
            cut = value if clip is None else min(max(value, old - clip), old + clip)
            wanted += max((value - target) ** 2, (cut - target) ** 2) / 2 / len(tokens)
        got = 0.0
        for micro in mini.micro:
            loss, _ = make(micro, mini)(it.values["new"][micro.source_S[micro.response_mask_S]])
            got += float(loss)
        assert got == pytest.approx(wanted, rel=1e-5)
