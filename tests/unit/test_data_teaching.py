"""Prompts are drawn by what they teach: the proportions, the rests, what is remembered, and a resume in the middle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.config.rollout import TeachingConfig
from prime_megatron.data.rows import Message, PromptRow
from prime_megatron.data.stream import PromptStream
from prime_megatron.errors import InputError
from prime_megatron.types import Group, Prompt, Sample


class Letters:
    """A tokenizer of one token a character."""

    def encode_chat(self, messages: Sequence[Message], tools: Any = ()) -> tuple[str, list[int]]:
        text = messages[-1].content
        return text, [ord(letter) for letter in text]


def stream(
    difficulties: Sequence[float | None], *, long: Sequence[int] = (), seed: int = 0, **keys: Any
) -> PromptStream:
    """Rows of these difficulties; those at ``long`` are skipped."""
    rows = [
        PromptRow((Message("user", "aaaa" if i in long else "a"),), "math", "1", "t", f"f, row {i}", difficulty=value)
        for i, value in enumerate(difficulties)
    ]
    config = TeachingConfig(**keys)
    return PromptStream(rows, Letters(), max_prompt_tokens=3, seed=seed, teaching=config)  # type: ignore[arg-type]


def row_of(prompt: Prompt) -> int:
    return int(prompt.uid.split("-")[1])


def answered(prompt: Prompt, outcomes: Sequence[float]) -> Group:
    return Group(prompt, tuple(Sample((2,), (0.0,), "stop", 0, outcome=outcome) for outcome in outcomes))


def test_rows_come_in_proportion_to_what_they_teach() -> None:
    """First draws of many steps against p (1 - p) and the floor: chi-square, 6 degrees of freedom, 0.999 at 22.5."""
    difficulties, floor, draws = [0.0, 0.1, 0.3, 0.5, None, 0.9, 1.0], 0.04, 4000
    prompts = stream(difficulties, floor=floor)
    counts: Counter[int] = Counter()
    for step in range(1, draws + 1):
        prompts.begin(step)
        counts[row_of(prompts.take(1)[0])] += 1
    p = np.array([0.5 if value is None else 1 - value for value in difficulties])
    weights = np.maximum(p * (1 - p), floor)
    expected = draws * weights / weights.sum()
    found = np.array([counts[row] for row in range(len(difficulties))])
    assert ((found - expected) ** 2 / expected).sum() < 22.5


def test_second_draws_of_a_step_are_those_without_the_first() -> None:
    """Of three rows of weights 1/4, 1/4 and 1/20: the pairs of a step, successive draws without replacement."""
    draws, w = 3000, np.array([0.25, 0.25, 0.05])
    prompts, counts = stream([0.5, 0.5, 0.0], floor=0.05), Counter()
    for step in range(1, draws + 1):
        prompts.begin(step)
        counts[tuple(map(row_of, prompts.take(2)))] += 1
    for first in range(3):
        for second in set(range(3)) - {first}:
            chance = w[first] / w.sum() * w[second] / (w.sum() - w[first])
            deviation = (draws * chance * (1 - chance)) ** 0.5
            assert abs(counts[first, second] - draws * chance) < 4 * deviation


def test_the_past_is_remembered_and_weighs() -> None:
    prompts = stream([None, 0.2], memory=0.25)
    prompts.begin(1)
    one, two = sorted(prompts.take(2), key=row_of)
    prompts.observe([answered(one, [1.0, 0.0, 0.0, 0.0]), answered(two, [0.5, 1.0])])
    # Nothing was known of the first; the second was seeded with 1 - 0.2.
    assert prompts.state()["accuracy"] == [0.25, 0.25 * 0.8 + 0.75 * 0.75]
    prompts.begin(2)
    prompts.observe([answered(one, [1.0, 1.0])])
    assert prompts.state()["accuracy"][0] == 0.25 * 0.25 + 0.75 * 1.0
    figures = prompts.figures()
    assert figures["data/known_prompts"] == 2 and figures["data/resting_prompts"] == 0
    assert figures["data/past_accuracy"] == pytest.approx((0.8125 + 0.7625) / 2)


def test_solved_and_hopeless_rows_rest() -> None:
    outcomes = {0: [1.0, 1.0], 1: [0.0, 0.0], 2: [0.5, 0.5], 3: [0.0, 1.0]}
    prompts = stream([None] * 4, rest_steps=2)
    prompts.begin(1)
    assert prompts.figures()["data/resting_prompts"] == 0
    prompts.observe([answered(prompt, outcomes[row_of(prompt)]) for prompt in prompts.take(4)])
    assert prompts.figures()["data/resting_prompts"] == 2
    for step in (2, 3):
        prompts.begin(step)
        assert {row_of(prompt) for prompt in prompts.take(2)} == {2, 3}
    prompts.begin(4)
    assert {row_of(prompt) for prompt in prompts.take(4)} == {0, 1, 2, 3}, "after two steps they are back"


def test_a_step_that_asks_for_more_than_there_is() -> None:
    """Rows that rest come last, then all anew; a row that cannot be read never comes."""
    prompts = stream([None] * 4, long=[3], rest_steps=5)
    prompts.begin(1)
    first = prompts.take(3)
    prompts.observe([answered(prompt, [1.0, 1.0] if row_of(prompt) == 0 else [0.0, 1.0]) for prompt in first])
    prompts.begin(2)
    second = prompts.take(5)
    rows = [row_of(prompt) for prompt in second]
    assert set(rows[:2]) == {1, 2} and rows[2] == 0 and len(set(rows[3:])) == 2
    uids = [prompt.uid for prompt in (*first, *second, *prompts.take(3))]
    assert len(set(uids)) == len(uids), "a row's visits are counted"
    with pytest.raises(InputError, match="every one of the 2 rows is skipped"):
        stream([None, None], long=[0, 1]).take(1)


STEPS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=6)
"""For every step the prompts of each of its rounds."""


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([None, 0.0, 0.3, 1.0]), min_size=2, max_size=12),
    st.sets(st.integers(1, 11), max_size=3),
    STEPS,
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_n_steps_are_k_a_resume_and_the_others(
    difficulties: list[float | None], long: set[int], steps: list[list[int]], k: int, rest: int, seed: int
) -> None:
    """Every step's prompts and the state, whatever fails on the way: a step that is made again is the same."""

    def new() -> PromptStream:
        return stream(difficulties, long=sorted(long), rest_steps=rest, seed=seed)

    def walk(prompts: PromptStream, step: int) -> list[Prompt]:
        prompts.begin(step)
        seen = []
        for count in steps[step - 1]:
            taken = prompts.take(count)
            # Outcomes of a rule that every rank would compute alike.
            prompts.observe([answered(p, [float((row_of(p) + step + i) % 3 > 1) for i in range(3)]) for p in taken])
            seen += taken
        return seen

    straight, resumed = new(), new()
    for step in range(1, len(steps) + 1):
        if step - 1 == k:
            state = json.loads(json.dumps(resumed.state()))
            resumed = new()
            resumed.restore(state)
        place = resumed.state()
        walk(resumed, step)
        resumed.restore(place)  # as after a stop in the middle of the rollout
        assert walk(straight, step) == walk(resumed, step)
        assert straight.state() == resumed.state() and straight.figures() == pytest.approx(
            resumed.figures(), nan_ok=True
        )
        assert straight.epoch == resumed.epoch


def test_going_on_with_other_difficulties_is_refused() -> None:
    state = stream([0.1, 0.2]).state()
    with pytest.raises(InputError, match="cannot resume the data stream: data_sha256 is"):
        stream([0.1, 0.3]).restore(state)
