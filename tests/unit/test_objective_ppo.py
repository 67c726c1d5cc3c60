"""policy.objective ppo against PPO's equation 7 with two bounds, in numpy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.objective_oracle import Drawn, check, draw


def ppo(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    ratio = np.exp(drawn.new - drawn.old)
    a = drawn.advantage
    loss = -np.minimum(a * ratio, a * np.clip(ratio, 0.8, 1.3))
    active = np.where(a > 0, ratio <= 1.3, ratio >= 0.8)
    return loss, drawn.weight * np.where(active, -a * ratio, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_against_the_formula(seed: int, one: bool) -> None:
    drawn = draw(seed, one_advantage=one)
    terms = check("ppo", ppo, drawn, clip_low=0.2, clip_high=0.3)
    ratio, kept = np.exp(drawn.new - drawn.old), drawn.weight > 0
    assert terms.stats["policy_clip_low_sum"] == (kept & (drawn.advantage < 0) & (ratio < 0.8)).sum()
    assert terms.stats["policy_clip_high_sum"] == (kept & (drawn.advantage > 0) & (ratio > 1.3)).sum()
