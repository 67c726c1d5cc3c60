"""An engine that loses its weights amid a generation: published again, the rest is made, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist

from prime_megatron.rollout.engine import Completion, Request, Sampling, WeightsLost
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.types import Prompt
from prime_megatron.verify import Answer, Verdict
from tests.support.ranks import run_ranks

NUM_PROMPTS, NUM_SAMPLES = 5, 2


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
            self.made[request] = Completion(request, (token,), (-0.5,), "stop")
            assert on_finished is not None
            on_finished(self.made[request])
        return [self.made[request] for request in requests]


class Counting:
    def __init__(self) -> None:
        self.answers: list[str] = []

    def submit(self, answer: Answer) -> Future[Verdict]:
        self.answers.append(answer.response)
        done: Future[Verdict] = Future()
        done.set_result(Verdict(1.0, "right", ""))
        return done


class Words:
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))


def generate() -> dict[str, Any]:
    engine, verifiers = Fragile(dist.get_rank()), Counting()
    published = []

    def publish_again() -> None:
        published.append(engine.version)
        dist.barrier()  # collective, on every rank
        engine.version = 4

    generator = Generator(engine, True, verifiers, Words(), publish_again)  # type: ignore[arg-type]
    prompts = [Prompt(f"0-{draw}", draw, (1, 2), "math", "x") for draw in range(NUM_PROMPTS)]
    groups = generator.groups(prompts, Draw(0, 1, 0, Sampling(3), NUM_SAMPLES))
    return {
        "uids": [group.prompt.uid for group in groups],
        "texts": [[sample.text for sample in group.samples] for group in groups],
        "versions": [sample.version for group in groups for sample in group.samples],
        "answers": sorted(verifiers.answers),
        "published": published,
        "calls": engine.calls,
    }


def test_a_lost_engine_is_given_its_weights_and_goes_on() -> None:
    results = run_ranks(generate, 2)
    expected = [[str(10 * draw + sample) for sample in range(NUM_SAMPLES)] for draw in range(NUM_PROMPTS)]
    for rank, result in enumerate(results):
        assert result["uids"] == [f"0-{draw}" for draw in range(NUM_PROMPTS)]
        assert result["texts"] == expected
        assert set(result["versions"]) == {4}
        assert result["answers"] == sorted(text for texts in expected[rank::2] for text in texts), "each verified once"
    assert [result["published"] for result in results] == [[4, 4], [-1, -1]]
    assert [result["calls"] for result in results] == [1, 3], "the other replica is not asked twice"
