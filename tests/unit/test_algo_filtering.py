import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.filtering import FilterReason, FilterTally, FilterVerdict, keep_group, prompts_to_request
from prime_megatron.config import FilterConfig
from prime_megatron.types import Group, Prompt, Sample


def _group(outcomes: list[float], finish: str = "stop") -> Group:
    prompt = Prompt(uid="0-0", draw=0, token_ids=(1,), ability="math", ground_truth="1")
    samples = [Sample((1,), (-1.0,), "stop", 0, outcome=o) for o in outcomes[:-1]]
    samples.append(Sample((1,), (-1.0,), finish, 0, outcome=outcomes[-1]))
    return Group(prompt, tuple(samples))


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([0.0, 0.0, 0.0, 0.0], "too_hard"),
        ([1.0, 1.0, 1.0, 1.0], "too_easy"),
        ([1.0, 0.0, 0.0, 0.0], "kept"),
        ([1.0, 0.0, 0.0, 0.0, 0.0], "kept"),  # exactly 0.2
        ([1.0, 1.0, 1.0, 1.0, 0.0], "kept"),  # exactly 0.8
        ([0.2 - 0.15, 0.2 + 0.15, 0.2], "kept"),  # 0.2, which binary rounds below
        ([0.8 - 0.1, 0.8 + 0.1, 0.8], "kept"),  # 0.8, which binary rounds above
        ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "too_hard"),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], "too_easy"),
    ],
)
def test_bounds_are_inclusive(outcomes: list[float], reason: str) -> None:
    assert keep_group(_group(outcomes), FilterConfig()) == FilterVerdict(reason == "kept", FilterReason(reason))


@pytest.mark.parametrize("k", range(1, 65))
def test_every_reachable_mean_on_a_bound_is_kept(k: int) -> None:
    for right in range(k + 1):
        exactly = FilterConfig(lower=right / k, upper=right / k)
        assert keep_group(_group([1.0] * right + [0.0] * (k - right)), exactly).kept


def test_truncated_groups_fall_only_when_asked_and_only_if_they_would_pass() -> None:
    asked = FilterConfig(drop_truncated=True)
    assert keep_group(_group([1.0, 0.0], "length"), FilterConfig()).kept
    assert keep_group(_group([1.0, 0.0], "length"), asked).reason == "truncated"
    assert keep_group(_group([0.0, 0.0], "length"), asked).reason == "too_hard"
    assert keep_group(_group([1.0, 0.0], "stop"), asked).kept


def test_tally_counts_by_reason() -> None:
    tally = FilterTally()
    assert math.isnan(tally.pass_rate)
    for outcomes in ([1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]):
        tally = tally.add(keep_group(_group(outcomes), FilterConfig()))
    assert tally == FilterTally(kept=2, too_easy=1, too_hard=1)
    assert (tally + tally).seen == 8
    assert tally.pass_rate == 0.5


def test_first_round_oversamples() -> None:
    assert prompts_to_request(10, FilterTally(), 1.0, 1000) == 10
    assert prompts_to_request(10, FilterTally(), 1.1, 1000) == 11
    assert prompts_to_request(10, FilterTally(), 4.0, 30) == 30


def test_later_rounds_follow_the_pass_rate() -> None:
    assert prompts_to_request(10, FilterTally(kept=49, too_easy=49), 1.0, 1000) == 20
    assert prompts_to_request(10, FilterTally(kept=0, too_hard=98), 1.0, 10_000) == 1000
    assert prompts_to_request(10, FilterTally(kept=0, too_hard=98), 1.0, 64) == 64


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.floats(1.0, 4.0), st.integers(1, 2000))
def test_requests_are_bounded(needed: int, kept: int, failed: int, oversample: float, most: int) -> None:
    got = prompts_to_request(needed, FilterTally(kept=kept, too_hard=failed), oversample, most)
    assert min(needed, most) <= got <= most
    assert (got == 0) == (needed == 0)
