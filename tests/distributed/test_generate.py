"""An engine that loses its weights amid a generation: published again, the rest is made, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch.distributed as dist

from prime_megatron.rollout.engine import Completion, Request, Sampling, WeightsLost
from prime_megatron.rollout.exchange import with_texts
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.types import Prompt
from prime_megatron.verify import Answer, Verdict
from tests.support.ranks import run_ranks

NUM_PROMPTS, NUM_SAMPLES = 5, 2
ENDS = ("stop", "length")


class Fragile:
    """Replica ``rank``; rank 1's dies twice, after one and two of its responses."""

    num_replicas = 2

    def __init__(self, rank: int) -> None:
        self.replica = rank
        self.version = 4
        self.deaths = [1, 2] if rank == 1 else []
        self.made: dict[Request, Completion] = {}
        self.calls = 0

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        assert self.version >= 0
        self.calls += 1
        for request in requests:
            if request in self.made:
                continue
            if self.deaths and len(self.made) == self.deaths[0]:
                self.deaths.pop(0)
                self.version = -1
                raise WeightsLost
            token = 10 * request.key.draw + request.key.sample
            self.made[request] = Completion(
                request, (token, 7)[: 1 + token % 2], (-0.1, -7.3)[: 1 + token % 2], ENDS[token % 2]
            )
            assert on_finished is not None
            on_finished(self.made[request])
        return [self.made[request] for request in requests]


class Counting:
    def __init__(self) -> None:
        self.answers: list[str] = []

    def submit(self, answer: Answer) -> Future[Verdict]:
        self.answers.append(answer.response)
        done: Future[Verdict] = Future()
        done.set_result(Verdict(0.1, "partial", f"why {answer.response}"))
        return done


class Words:
    def __init__(self) -> None:
        self.decoded: list[str] = []

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        self.decoded.append(" ".join(map(str, token_ids)))
        return self.decoded[-1]


def in_form(text: str) -> bool:
    """Responses to prompts 2 and 4, of one rank, and the second to prompt 1, of the other."""
    return text[0] in "24" or text == "11 7"


def generate() -> dict[str, Any]:
    engine, verifiers, words = Fragile(dist.get_rank()), Counting(), Words()
    published = []

    def publish_again() -> None:
        published.append(engine.version)
        dist.barrier()  # collective, on every rank
        engine.version = 4

    generator = Generator(engine, True, verifiers, words, publish_again, in_form)  # type: ignore[arg-type]
    prompts = [Prompt(f"0-{draw}", draw, (1, 2), "math", "x") for draw in range(NUM_PROMPTS)]
    groups = generator.groups(prompts, Draw(0, 1, 0, Sampling(3), NUM_SAMPLES))
    return {
        "uids": [group.prompt.uid for group in groups],
        "texts": [[sample.text for sample in group.samples] for group in groups],
        "read_from_all": [
            (sample.token_ids, sample.logprobs, sample.finish, sample.version, sample.outcome, sample.verdict)
            for group in groups
            for sample in group.samples
        ],
        "in_form": [[sample.in_form for sample in group.samples] for group in groups],
        "gathered": [[(sample.text, sample.reason) for sample in group.samples] for group in with_texts(groups)],
        "decoded": words.decoded,
        "answers": sorted(verifiers.answers),
        "published": published,
        "calls": engine.calls,
    }


def words_of(draw: int, sample: int) -> str:
    return f"{10 * draw}" if sample == 0 else f"{10 * draw + 1} 7"


def test_a_lost_engine_is_given_its_weights_and_goes_on() -> None:
    results = run_ranks(generate, 2)
    for rank, result in enumerate(results):
        assert result["uids"] == [f"0-{draw}" for draw in range(NUM_PROMPTS)]
        mine = sorted(words_of(draw, sample) for draw in range(rank, NUM_PROMPTS, 2) for sample in range(NUM_SAMPLES))
        assert result["answers"] == mine, "each verified once"
    assert [result["published"] for result in results] == [[4, 4], [-1, -1]]
    assert [result["calls"] for result in results] == [1, 3], "the other replica is not asked twice"


def test_ranks_tell_each_other_numbers_and_keep_the_text() -> None:
    results = run_ranks(generate, 2)
    tenth, third = (float(np.float32(value)) for value in (-0.1, -7.3))
    for result in results:
        assert result["read_from_all"] == [
            ((10 * draw,), (tenth,), "stop", 4, 0.1, "partial")
            if sample == 0
            else ((10 * draw + 1, 7), (tenth, third), "length", 4, 0.1, "partial")
            for draw in range(NUM_PROMPTS)
            for sample in range(NUM_SAMPLES)
        ]
        assert result["in_form"] == [[False, False], [False, True], [True, True], [False, False], [True, True]]
    whole = [[words_of(draw, sample) for sample in range(NUM_SAMPLES)] for draw in range(NUM_PROMPTS)]
    for rank, result in enumerate(results):
        expected = [row if draw % 2 == rank else [None] * NUM_SAMPLES for draw, row in enumerate(whole)]
        assert result["texts"] == expected, "a text stays on the rank that decoded it"
    decoded = [text for result in results for text in result["decoded"]]
    assert sorted(decoded) == sorted(text for row in whole for text in row), "each response is decoded once, in all"
    assert results[0]["gathered"] == [[(text, f"why {text}") for text in row] for row in whole]
    assert [[text for text, _ in row] for row in results[1]["gathered"]] == results[1]["texts"]
