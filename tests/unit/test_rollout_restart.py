"""Death in every operation of the colocated order, by every transport: afterwards the engine's state is the trainer's.

The engine's side (`rollout.child`) runs in a thread here, behind the real channel, with a driver that keeps to the
order that engines insist on; a death is the end of that thread.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.config import Offload
from prime_megatron.errors import EngineDied
from prime_megatron.rollout.engine import Completion, Request, Sampling, WeightsLost
from prime_megatron.rollout.process.channel import Channel
from prime_megatron.rollout.process.child import EngineChild
from prime_megatron.rollout.process.driver import DriverSettings, FinishedResponse
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.run.colocation import Colocation
from prime_megatron.run.residency import Residency
from prime_megatron.types import Bucket
from prime_megatron.weights.buffer import TensorRow, open_buffer, unpack
from prime_megatron.weights.transports import BroadcastTransport, Transport
from tests.support.echo_driver import EchoDriver
from tests.unit.test_rollout_process import WEIGHT, bucket, disk, live

TRANSPORTS: dict[str, Callable[[Path], Transport]] = {
    "live": lambda folder: live(),
    "bucket": lambda folder: bucket(),
    "broadcast": lambda folder: bucket(BroadcastTransport),
    "disk": disk,
}
MOVES = {"live": [], "bucket": ["load_bucket"], "broadcast": ["receive"], "disk": ["load_folder"]}
"""How a transport's weights reach the driver in an update."""
AROUND = ["generate", "sleep", "wake weights", "commit", "bit_sums", "wake kv_cache"]
MOMENTS = ["begun", "done", "answered"]
"""Before the operation takes effect; after that, unanswered; after the answer, found by the next call."""


def cases() -> list[tuple[str, int, str]]:
    """Transport, level of sleep, operation."""
    return [
        (transport, level, operation)
        for transport, level in itertools.product(TRANSPORTS, (1, 2))
        for operation in AROUND + MOVES[transport]
        # A live engine proves once per process, at its first update, that it reads what the trainer writes.
        if (transport, operation) != ("live", "bit_sums")
    ]


class Killed(BaseException):
    """The end of an engine's thread."""


class Fate:
    """The deaths to come, one after the other: each at the first such moment."""

    def __init__(self) -> None:
        self.deaths: list[tuple[str, str]] = []

    def strikes(self, operation: str, moment: str) -> bool:
        if self.deaths[:1] != [(operation, moment)]:
            return False
        del self.deaths[0]
        return True


class StrictDriver(EchoDriver):
    """Refuses what would harm a real engine: work asleep, a second sleep or wake."""

    def __init__(self, settings: DriverSettings) -> None:
        super().__init__(settings)
        self.asleep: set[str] = set()
        self.version = -1

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        assert not self.asleep
        super().generate(requests, finished, alive)

    def attach(self, paths: Sequence[str]) -> None:
        self.check_weights()
        super().attach(paths)

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        self.check_weights()
        self.model.load_state_dict(dict(unpack(open_buffer(handles[0]), rows)))

    def load_folder(self, path: str) -> None:
        self.check_weights()
        super().load_folder(path)

    def receive(self, rows: Sequence[TensorRow]) -> None:
        self.check_weights()
        super().receive(rows)

    def commit(self, version: int) -> None:
        self.check_weights()
        self.version = version

    def bit_sums(self) -> list[dict[str, int]]:
        self.check_weights()
        return super().bit_sums()

    def sleep(self, level: int) -> None:
        assert not self.asleep
        self.asleep = {"weights", "kv_cache"}
        if level == 2:
            self.version = -1

    def wake(self, tags: Collection[str]) -> None:
        assert set(tags) <= self.asleep
        self.asleep -= set(tags)

    def check_weights(self) -> None:
        assert "weights" not in self.asleep


class Mortal:
    """A driver that dies where fate has it."""

    def __init__(self, driver: StrictDriver, fate: Fate) -> None:
        self._driver, self._fate = driver, fate

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def perform(*arguments: Any, **named: Any) -> Any:
            name = " ".join([operation, *named.get("tags", ())])
            if self._fate.strikes(name, "begun"):
                raise Killed
            result = getattr(self._driver, operation)(*arguments, **named)
            if self._fate.strikes(name, "done"):
                raise Killed
            return result

        return perform


class ThreadProcess(EngineProcess):
    """`EngineProcess` without a process."""

    def __init__(self, settings: DriverSettings, fate: Fate) -> None:
        ours, self._theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._calls, self._operation, self._fate = 0, "start", fate
        self.driver = StrictDriver(settings)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def lives(self) -> bool:
        return self._thread.is_alive()

    def check_alive(self) -> None:
        if not self.lives():
            raise EngineDied("its thread ended")

    def post(self, operation: str, **arguments: Any) -> None:
        super().post(operation, **arguments)
        self._operation = " ".join([operation, *arguments.get("tags", ())])

    def kill(self) -> None:
        with suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=60)
        assert not self.lives()
        self._channel.close()

    def _answer(self, *arguments: Any) -> Any:
        answer = super()._answer(*arguments)
        if self._fate.strikes(self._operation, "answered"):
            self._theirs.shutdown(socket.SHUT_RDWR)
            self._thread.join(timeout=60)
        return answer

    def _how_it_ended(self) -> str:
        return "its thread ended"

    def _serve(self) -> None:
        with suppress(EOFError, Killed), self._theirs:
            EngineChild(Channel(self._theirs), Mortal(self.driver, self._fate)).serve()


class Trainer:
    """The colocated order with one engine; the weights of version v are v."""

    def __init__(self, folder: Path, transport: str, level: int) -> None:
        settings = DriverSettings(
            model_path=str(folder), device="cpu", dtype="float32", tensor=1, max_tokens=20, max_concurrent=8,
            end_token_ids=(1,), seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1,
            can_sleep=True, extra={"broken": False, "dead": False, "once": str(folder / "once")},
        )  # fmt: skip
        self.fate = Fate()
        self.engine = ProcessEngine(
            Member(0, 1, 0, 0, None),
            settings,
            Limits(3, 60.0, 60.0, 60.0),
            lambda: ThreadProcess(settings, self.fate),
            TRANSPORTS[transport](folder),
        )
        self.colocation = Colocation(self.engine, self, None, Residency(Offload.none, [], ()))
        self.colocation.level = level

    def publish(self, version: int) -> None:
        """As `reshard` does: all of it again while the engine has another version."""
        weight, targets = torch.full_like(WEIGHT, float(version)), self.engine.named_targets()
        if targets is not None:
            targets["weight"].copy_(weight)
        done = False
        while not done:
            chunks = [] if targets is not None else [Bucket(["weight"], [weight], version)]
            self.engine.update_weights(iter(chunks), version)
            done = self.engine.version == version
            self.check()

    def step(self, version: int) -> None:
        """Generation with new weights, then sleep."""
        self.colocation.publish(version)
        self.check()
        asked = [Request((2, 5, draw), SampleKey(0, version, draw, 0), Sampling(4)) for draw in range(3)]
        told: list[Completion] = []
        made: list[Completion] = []
        while not made:
            try:
                made = self.engine.generate(asked, told.append)
            except WeightsLost:
                self.colocation.publish_again()
            self.check()
        assert [c.request for c in made] == asked
        assert {lp for c in made for lp in c.logprobs} == {float(version * WEIGHT.numel())}
        assert sorted(c.request.key.draw for c in told) == [0, 1, 2], "each response is told once"
        self.colocation.sleep_engine()
        self.check()

    def check(self) -> None:
        """The engine's process is as the trainer thinks; one whose death is not known yet says nothing."""
        process = self.engine._process
        if process is None or not process.lives():
            return
        assert process.driver.asleep == self.engine._asleep
        if self.engine._loaded:
            assert process.driver.version == self.engine.version >= 0
            assert torch.equal(process.driver.model.weight, torch.full_like(WEIGHT, float(self.engine.version)))


@pytest.mark.parametrize(("transport", "level", "operation"), cases())
def test_after_a_death_state_and_weights_are_right(tmp_path: Path, transport: str, level: int, operation: str) -> None:
    trainer = Trainer(tmp_path, transport, level)
    trainer.step(1)
    for count, moment in enumerate(MOMENTS, start=1):
        trainer.fate.deaths = [(operation, moment)]
        trainer.step(2 * count)
        trainer.step(2 * count + 1)
        assert trainer.fate.deaths == [], "it died"
        assert trainer.engine.num_restarts == count
    trainer.engine.close()


AGAIN = [
    ("live", "wake weights", "attach"),
    ("live", "wake kv_cache", "sleep"),
    ("live", "generate", "commit"),
    ("bucket", "wake kv_cache", "wake weights"),
    ("bucket", "generate", "sleep"),
    ("broadcast", "generate", "join"),
    ("broadcast", "wake weights", "sleep"),
    ("disk", "generate", "load_folder"),
    ("disk", "wake kv_cache", "sleep"),
]
"""Transport, an operation, and what the restart after its death does on the way back."""


@pytest.mark.parametrize(("transport", "operation", "then"), AGAIN)
def test_the_restart_may_die_as_well(tmp_path: Path, transport: str, operation: str, then: str) -> None:
    trainer = Trainer(tmp_path, transport, 1)
    trainer.step(1)
    for count, moment in enumerate(MOMENTS, start=1):
        trainer.fate.deaths = [(operation, "begun"), (then, moment)]
        trainer.step(2 * count)
        trainer.step(2 * count + 1)
        assert trainer.fate.deaths == []
        assert trainer.engine.num_restarts == 2 * count
    trainer.engine.close()
