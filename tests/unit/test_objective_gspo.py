"""policy.objective gspo against equations 5 and 7 of arXiv 2507.18071 (and 13, GSPO-token), in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.objectives import OBJECTIVES
from tests.support.objective_oracle import Drawn, check, draw, loss_of

LOW, HIGH = 0.03, 0.04


def ratios(drawn: Drawn) -> np.ndarray:
    """s_i = (p(y_i) / p_old(y_i))^(1 / length), at every token of response i."""
    gap = drawn.new - drawn.old
    sizes = [s.stop - s.start for s in drawn.spans]
    return np.repeat([np.exp(gap[s].sum()) ** (1 / size) for s, size in zip(drawn.spans, sizes, strict=True)], sizes)


def gspo_token(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    s, a = ratios(drawn), drawn.advantage
    active = np.where(a > 0, s <= 1 + HIGH, s >= 1 - LOW)
    return -np.minimum(a * s, a * np.clip(s, 1 - LOW, 1 + HIGH)), drawn.weight * np.where(active, -a * s, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_against_the_formula(seed: int, one: bool) -> None:
    drawn = draw(seed, one_advantage=one, spread=0.1)
    terms = check("gspo", gspo_token, drawn, clip_low=LOW, clip_high=HIGH)
    kept = drawn.weight > 0
    assert float(terms.stats["policy_objective_sequence_ratio_sum"]) == pytest.approx(ratios(drawn)[kept].sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_with_one_advantage_a_response_it_is_gspo_itself(seed: int) -> None:
    """(1/N) sum_i min(s_i A_i, clip(s_i) A_i), differentiated through s_i: every token, weighed 1 / (N length)."""
    drawn = draw(seed, one_advantage=True, spread=0.1)
    count = len(drawn.spans)
    weight = np.concatenate([np.full(s.stop - s.start, 1 / (count * (s.stop - s.start))) for s in drawn.spans])
    drawn = dataclasses.replace(drawn, weight=weight)

    def whole(new: np.ndarray) -> float:
        at = ratios(dataclasses.replace(drawn, new=new))
        gains = [min(at[s.start] * a, np.clip(at[s.start], 1 - LOW, 1 + HIGH) * a)
                 for s in drawn.spans for a in (drawn.advantage[s.start],)]  # fmt: skip
        return -sum(gains) / count

    loss, new = loss_of(drawn, OBJECTIVES["gspo"], clip_low=LOW, clip_high=HIGH), torch.tensor(drawn.new)
    terms = loss.terms(new, torch.zeros_like(new), slice(0, new.numel()))
    assert float(terms.loss) == pytest.approx(whole(drawn.new), rel=1e-6, abs=1e-9)
    for t in {0, drawn.edges[1] - 1, drawn.edges[-1] - 1}:
        step = np.zeros_like(drawn.new)
        step[t] = 1e-6
        slope = (whole(drawn.new + step) - whole(drawn.new - step)) / 2e-6
        assert float(terms.dlogprobs_t[t]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_part_of_a_sequence_is_refused() -> None:
    drawn = draw(1, one_advantage=True)
    with pytest.raises(ValueError, match="boundaries"):
        dataclasses.replace(loss_of(drawn, OBJECTIVES["gspo"]), boundaries=None)
    with pytest.raises(AssertionError, match="cut sequence"):
        loss_of(drawn, OBJECTIVES["gspo"]).terms(torch.zeros(1), torch.zeros(1), slice(0, 1))
