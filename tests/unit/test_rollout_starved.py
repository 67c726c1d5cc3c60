"""A step that starves says why: from what became of its responses, not from the filter's counts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from prime_megatron.config import RolloutConfig
from prime_megatron.errors import RunError
from prime_megatron.rollout.collect import Collector
from prime_megatron.rollout.generate import Draw
from prime_megatron.types import Group, Prompt, Sample

CONFIG = RolloutConfig.model_validate(
    {
        "prompts_per_step": 2,
        "samples_per_prompt": 4,
        "sampling": {"max_response_tokens": 7},
        "filter": {"max_rounds": 3},
    }
)
CUT, BARE = ("length", 0.0, "no_answer"), ("stop", 0.0, "no_answer")
WRONG, FAILED = ("stop", 0.0, "wrong"), ("stop", 0.0, "timeout")
RIGHT = ("stop", 1.0, "correct")


class Endless:
    """Prompts without end."""

    def __init__(self) -> None:
        self.draw = 0

    def begin(self, step: int) -> None:
        pass

    def observe(self, groups: Sequence[Group]) -> None:
        pass

    def take(self, count: int) -> list[Prompt]:
        self.draw += count
        return [Prompt(f"0-{n}", n, (1,), "math", "4") for n in range(self.draw - count, self.draw)]


class Same:
    """A generator whose groups all have these responses."""

    def __init__(self, responses: Sequence[tuple[str, float, str]]) -> None:
        self.samples = tuple(
            Sample((2,), (0.0,), finish, 0, outcome=outcome, verdict=verdict) for finish, outcome, verdict in responses
        )

    def groups(self, prompts: Sequence[Prompt], draw: Draw, stop: Callable[[], bool]) -> list[Group]:
        return [Group(prompt, self.samples) for prompt in prompts]


def starve(responses: Sequence[tuple[str, float, str]], config: RolloutConfig = CONFIG) -> tuple[str, list[int]]:
    """The message, and the draws of the rejected groups that the collector tells of."""
    told: list[int] = []
    collector = Collector(
        Endless(),
        Same(responses),  # type: ignore[arg-type]
        config,
        seed=0,
        on_starved=lambda step, rejected: told.extend(group.prompt.draw for group, _ in rejected),
    )
    with pytest.raises(RunError) as error:
        collector.collect(3)
    assert "\n" not in str(error.value)
    return str(error.value), told


@pytest.mark.parametrize(
    ("responses", "counts", "advice"),
    [
        ([CUT] * 4, "0 right, 72 cut at 7 tokens, 0 without", "raise rollout.sampling.max_response_tokens (7)"),
        ([BARE] * 3 + [CUT], "18 cut at 7 tokens, 54 without an answer", "data.system_prompt"),
        ([WRONG] * 4, "72 wrong", "use easier prompts"),
        ([FAILED] * 4, "0 wrong, 72 on which the verifier failed", "verify.timeout_s"),
        ([RIGHT] * 4, "72 right, 0 cut", "raise rollout.filter.upper (0.8)"),
    ],
)  # fmt: skip
def test_the_commonest_cause_is_named_with_its_counts(responses, counts, advice):
    message, told = starve(responses)
    assert message.startswith("step 3: 0 of 2 prompts after 3 rounds; pass rate 0.0 %")
    assert counts in message and advice in message
    assert told == list(range(18)), "2 prompts, then twice 8, all rejected"


def test_groups_that_pass_are_not_what_starves():
    """One group of the batch passes at every step; the cause is counted among those that do not."""
    dropping = CONFIG.model_copy(update={"filter": CONFIG.filter.model_copy(update={"drop_truncated": True})})
    message, _ = starve([RIGHT, RIGHT, CUT, CUT], dropping)
    assert "36 right, 36 cut" in message and "18 truncated" in message
    assert "drop_truncated to false" in message
