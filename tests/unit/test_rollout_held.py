"""An engine that ends on its own ranks takes part until all can hear of it; a starved batch by its rule."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest
import torch

from prime_megatron.config import Offload, RolloutConfig
from prime_megatron.errors import PeerLost, RunError
from prime_megatron.rollout.collect import Collector
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.held import HeldEngine
from prime_megatron.run.colocation import Colocation
from prime_megatron.run.residency import Residency
from prime_megatron.types import Bucket, Group, Prompt, Sample


class Dying:
    """Fails in one operation, for good."""

    replica, num_replicas, num_restarts = 1, 2, 0

    def __init__(self, operation: str, error: type[Exception] = RunError) -> None:
        self.operation, self.error = operation, error
        self.version = 3
        self.calls: list[str] = []

    def _call(self, operation: str) -> None:
        self.calls.append(operation)
        if operation == self.operation:
            raise self.error(f"gone in {operation}")

    def named_targets(self) -> None:
        return None

    def generate(self, requests: Sequence[Any], on_finished: Any = None) -> list[Any]:
        self._call("generate")
        return list(requests)

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        next(iter(buckets))
        self._call("update_weights")
        self.version = version

    def sleep(self, level: int) -> None:
        self._call("sleep")

    def wake(self, tags: Collection[str]) -> None:
        self._call("wake")

    def close(self) -> None:
        self._call("close")


def buckets(taken: list[int]) -> Iterable[Bucket]:
    """Making one is collective: whoever does not take it lets the others wait."""
    for number in range(4):
        taken.append(number)
        yield Bucket(["w"], [torch.zeros(1)], 5)


@pytest.mark.parametrize("operation", ["generate", "update_weights", "sleep", "wake"])
def test_it_takes_part_and_does_nothing(operation: str) -> None:
    engine, taken = Dying(operation), []
    held = HeldEngine(engine)
    assert isinstance(held, Engine) and (held.replica, held.num_replicas, held.version) == (1, 2, 3)
    held.wake({"weights"})
    held.update_weights(buckets(taken), 5)
    assert taken == [0, 1, 2, 3] and held.version == 5
    if operation == "sleep":
        held.sleep(1)
    with pytest.raises(RunError, match=f"gone in {operation}"):
        held.generate([])
    after = len(engine.calls)
    held.sleep(1)
    held.wake({"weights"})
    taken.clear()
    held.update_weights(buckets(taken), 6)
    assert taken == [0, 1, 2, 3] and held.version == 6, "nobody is to send it again"
    with pytest.raises(RunError, match=f"gone in {operation}"):
        held.generate([])
    assert engine.calls[after:] == []
    held.close()
    assert engine.calls[-1] == "close"


def test_a_lost_peer_is_raised_at_once() -> None:
    with pytest.raises(PeerLost):
        HeldEngine(Dying("wake", PeerLost)).wake({"weights"})


def test_weights_that_arrived_wrong_are_told_with_the_next_generation() -> None:
    class Wrong:
        def publish(self, version: int) -> None:
            raise RunError(f"version {version}: the engine's tensors differ")

    held = HeldEngine(Dying("nothing"))
    Colocation(held, Wrong(), None, Residency(Offload.none, [], ())).publish(7)
    with pytest.raises(RunError, match="version 7: the engine's tensors differ"):
        held.generate([])


class Stream:
    def __init__(self) -> None:
        self.drawn = 0

    def begin(self, step: int) -> None:
        pass

    def observe(self, groups: Sequence[Group]) -> None:
        pass

    def take(self, count: int) -> list[Prompt]:
        self.drawn += count
        return [Prompt(f"0-{self.drawn - i}", self.drawn - i, (1,), "math", "x") for i in range(count)]


class Makes:
    """Groups of two samples; the first ``good`` of them pass the filter."""

    def __init__(self, good: int) -> None:
        self.good = good

    def groups(self, prompts: Sequence[Prompt], *_: Any) -> list[Group]:
        made = []
        for prompt in prompts:
            outcomes = (0.0, 1.0) if self.good > 0 else (0.0, 0.0)
            self.good -= 1
            samples = tuple(Sample((2,), (0.0,), "stop", 0, "a", outcome=outcome) for outcome in outcomes)
            made.append(Group(prompt, samples))
        return made


@pytest.mark.parametrize(
    ("rule", "good", "kept"), [("stop", 3, None), ("smaller_batch", 3, 3), ("smaller_batch", 0, None), ("stop", 4, 4)]
)
def test_a_starved_batch(rule: str, good: int, kept: int | None) -> None:
    starving = {"max_rounds": 2, "on_starved": rule}
    values = {"prompts_per_step": 4, "samples_per_prompt": 2, "filter": starving}
    config = RolloutConfig.model_validate_json(json.dumps(values))
    collector = Collector(Stream(), Makes(good), config, 0)  # type: ignore[arg-type]
    if kept is None:
        with pytest.raises(RunError, match=rf"step 1: {good} of 4 prompts"):
            collector.collect(1)
        return
    collected = collector.collect(1)
    assert (len(collected.groups), collected.missing, collector.waiting) == (kept, 4 - kept, [])
