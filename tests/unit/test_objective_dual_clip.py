"""policy.objective dual_clip against equation 5 of arXiv 1912.09729, in numpy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.objective_oracle import Drawn, check, draw

C = 1.7


def dual_clip(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """max(min(A r, A clip r), c A) is what a token with A < 0 gains."""
    ratio, a = np.exp(drawn.new - drawn.old), drawn.advantage
    gain = np.minimum(a * ratio, a * np.clip(ratio, 0.8, 1.2))
    gain = np.where(a < 0, np.maximum(gain, C * a), gain)
    active = np.where(a > 0, ratio <= 1.2, (ratio >= 0.8) & (ratio <= C))
    return -gain, drawn.weight * np.where(active, -a * ratio, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_against_the_formula(seed: int, one: bool) -> None:
    drawn = draw(seed, one_advantage=one, spread=1.0)
    terms = check("dual_clip", dual_clip, drawn, dual_clip=C)
    held = (drawn.weight > 0) & (drawn.advantage < 0) & (np.exp(drawn.new - drawn.old) > C)
    assert terms.stats["policy_objective_dual_clip_sum"] == held.sum()


def test_a_token_far_away_cannot_dominate() -> None:
    """A bad token that is e^5 times as likely now: ppo pays 148 |A| for it, dual_clip 3 |A| and no gradient."""
    far = Drawn(np.array([-1.0]), np.array([-6.0]), np.array([-1.0]), np.array([1.0]), [0, 1])
    terms = check("dual_clip", lambda _: (np.array([3.0]), np.array([0.0])), far)
    assert float(terms.loss) == 3.0
    assert float(check("ppo", lambda _: (np.exp([5.0]), np.exp([5.0])), far).loss) > 148
