"""policy.objective cispo against equations 4 and 5 of arXiv 2506.13585, in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.objective_oracle import Drawn, check, draw


@pytest.mark.parametrize("low", [0.2, 1.0])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), one=st.booleans())
def test_against_the_formula(low: float, seed: int, one: bool) -> None:
    """The weight has no gradient, and every token has one."""

    def cispo(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
        weight = np.clip(np.exp(drawn.new - drawn.old), 1 - low, 1.3)
        return -weight * drawn.advantage * drawn.new, -drawn.weight * weight * drawn.advantage

    drawn = draw(seed, one_advantage=one)
    terms = check("cispo", cispo, drawn, clip_low=low, clip_high=0.3)
    ratio, kept = np.exp(drawn.new - drawn.old), drawn.weight > 0
    assert terms.stats["policy_objective_weight_low_sum"] == (kept & (ratio < 1 - low)).sum()
    assert terms.stats["policy_objective_weight_high_sum"] == (kept & (ratio > 1.3)).sum()
    assert ((terms.dlogprobs_t != 0).numpy() == kept).all()
