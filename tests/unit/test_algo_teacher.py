"""A teacher's formulas against loops over lists, from the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from prime_megatron.algo.teacher import clip_statistics, mix_at, taught_advantages
from prime_megatron.config import TeacherAlgorithm, TeacherMode
from prime_megatron.types import Advantages
from tests.support.algo_oracle import Case, cases, close

ALPHA, MIX = 0.7, 0.3


def judged(case: Case, config: TeacherAlgorithm) -> tuple[Advantages, np.ndarray]:
    """The package's advantages, and the outcome's, which they are made of."""
    batch = case.batch()
    outcome = np.where(np.arange(case.prm.shape[1]) < case.length[:, None], case.values, 0.0)
    outcome[0, 0] = 0.0  # a response that says nothing has no sign
    given = Advantages(torch.zeros_like(batch.engine_logprobs_T), case.pack(case.kl), case.pack(outcome, prompt=0.0))
    pair = case.pack(case.prm), case.pack(case.ref)
    return taught_advantages(batch, *pair, given, config, alpha=ALPHA, mix=MIX), outcome


def clipped(value: float) -> float:
    return min(max(value, 0.8), 1.2)


def sign(value: float) -> int:
    return int(value > 0) - int(value < 0)


@pytest.mark.parametrize("mode", TeacherMode)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_advantages(mode: TeacherMode, case: Case) -> None:
    config = TeacherAlgorithm(mode=mode, late_discount=0.6)
    got, outcome = judged(case, config)
    wanted, rewards = np.zeros_like(outcome), np.zeros_like(outcome)
    held = 0
    for i in range(case.n):
        t_of = [float(case.prm[i, t] - case.ref[i, t]) for t in range(case.length[i])]
        total = sum(abs(x) for x in t_of)
        for t, judgement in enumerate(t_of):
            a = outcome[i, t]
            rewards[i, t] = judgement
            if mode is TeacherMode.rlsd:
                weight = math.exp(sign(a) * judgement)
                held += not 0.8 <= weight <= 1.2
                wanted[i, t] = a * (1 - MIX + MIX * clipped(weight))
                continue
            if mode is TeacherMode.iw_opd:
                rewards[i, t] *= 1 + 0.6 * (1 - sum(abs(x) for x in t_of[:t]) / total)
            wanted[i, t] = a + ALPHA * rewards[i, t]
    close(case.unpack(got.process_rewards_T), rewards)
    close(case.unpack(got.advantages_T), wanted)
    assert torch.equal(got.returns_T, case.pack(case.kl))
    if mode is TeacherMode.rlsd:
        sums = clip_statistics(case.batch(), got, config).sums
        assert (float(sums["teacher_clipped_sum"]), float(sums["teacher_tokens"])) == (held, case.length.sum())
        assert (np.sign(case.unpack(got.advantages_T)) == np.sign(outcome)).all()


def test_a_teacher_that_is_the_policy_says_nothing() -> None:
    same: dict[str, Any] = {"mode": TeacherMode.iw_opd}
    batch = (case := Case(*(np.array(x) for x in ([0], [1], [2], [1.0], [[-1.0, -2.0]], [[-1.0, -2.0]], [[3.0, 4.0]],
                                                  [[0.0, 0.0]], [[False, False]])))).batch()  # fmt: skip
    given = Advantages(torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 3.0, 4.0]))
    pair = case.pack(case.prm), case.pack(case.ref)
    got = taught_advantages(batch, *pair, given, TeacherAlgorithm(**same), alpha=1.0, mix=0.0)
    assert torch.equal(got.advantages_T, given.advantages_T)


def test_the_mix_falls_to_nothing() -> None:
    config = TeacherAlgorithm()
    assert [mix_at(config, step) for step in (1, 26, 50, 51, 500)] == pytest.approx([0.5, 0.25, 0.01, 0.0, 0.0])
