"""An engine in a process of its own, seen from the ranks of its replica; see `Engine`.

One rank of the replica (the leader) owns the process; the others get its answers. The process may die
or hang at any time: it is started again, given the same weights, and asked for what is still missing.

Where the weights go, by transport:
    live       the engine's own parameters, in shared memory: `named_targets` of tensor-parallel rank r on rank r
    bucket     whole Hugging Face tensors through two shared buffers (CUDA IPC on a GPU)
    broadcast  the same over a process group of trainer and engine
    disk       the same as a folder that the engine loads
Live weights and a folder outlive the engine. The other two keep no copy: a restarted engine gets its
weights by another sync (`WeightsLost`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from prime_megatron.errors import EngineDied, RunError
from prime_megatron.rollout.engine import Completion, Request, WeightsLost, check_lengths
from prime_megatron.rollout.process.driver import DriverSettings, request_to_json
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.types import Bucket
from prime_megatron.weights.segment import open_segment
from prime_megatron.weights.transports import Transport

T = TypeVar("T")
ResponseRow = tuple[list[int], list[float], str]
"""Token ids, log-probs and finish reason of a response."""
TAGS = frozenset({"weights", "kv_cache"})


class ProcessEngine:
    """See the module.

    Args:
        member: this rank's part in the replica.
        settings: of the engine.
        limits: timeouts and restarts.
        start: makes the engine's process (raises EngineDied or InputError).
        transport: brings the weights; None on all ranks but the leader.
    Raises:
        InputError: the engine is not installed.
        RunError: it does not start.
    """

    def __init__(
        self,
        member: Member,
        settings: DriverSettings,
        limits: Limits,
        start: Callable[[], EngineProcess],
        transport: Transport | None,
    ) -> None:
        self.replica, self.num_replicas = member.replica, member.num_replicas
        self.num_restarts = 0
        """See `Engine.num_restarts`; the leader's."""
        self._member, self._settings, self._limits = member, settings, limits
        self._start_process, self._transport = start, transport
        self._version = -1
        self._loaded = False
        """Whether the process has the weights of this version; the leader's alone."""
        self._kept: dict[Request, ResponseRow] = {}
        """Responses of a call that a death ended, until it is repeated."""
        self._failures = 0
        self._asleep: frozenset[str] = frozenset()
        self._level = 1
        """Of the last sleep."""
        self._process: EngineProcess | None = None
        paths = self._member.agree(self._first_start)
        self._targets = open_segment(paths[member.tensor_rank]) if paths else None

    @property
    def version(self) -> int:
        """See `Engine.version`."""
        return self._version

    def named_targets(self) -> Mapping[str, Tensor] | None:
        """The engine's parameters of this tensor-parallel rank, fused as the engine has them; None but for `live`."""
        return self._targets

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        """See `Engine.update_weights`. Collective over the replica; every rank gives the same buckets.

        Raises:
            RunError: a tensor that the engine's model does not have, or one that did not come, or weights that arrived
                wrong; it is named. Or the engine refused the update.
        """
        self._version = -1  # until all of it is there
        self._loaded = False
        if self._targets is not None:
            assert not list(buckets), "live weights are written in place"
            if self._member.group is not None:
                dist.barrier(group=self._member.group)  # all ranks have written
            self._member.agree(lambda: self._with_living_engine(lambda process: self._link.finish(process, version)))
            complete = True
        else:
            self._member.agree(self._begin)
            for bucket in buckets:
                self._member.agree(
                    lambda bucket=bucket: self._if_alive(lambda process: self._link.send(process, bucket))
                )
            complete = self._member.agree(lambda: self._if_alive(lambda process: self._link.finish(process, version)))
        if complete:
            self._version = version
            self._loaded = True

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. A response of a dead engine that was not finished is made again, from its start.

        Raises:
            WeightsLost: as `Engine.generate`; ``on_finished`` does not hear again of what it has heard.
        """
        assert self._version >= 0 and not self._asleep, "generate before the first weight sync, or asleep"
        check_lengths(requests, self._settings.max_tokens)
        try:
            rows = self._member.agree(lambda: self._generate(requests, on_finished))
        except WeightsLost:
            self._version = -1
            raise
        completions = [
            Completion(request, tuple(row[0]), tuple(row[1]), row[2])
            for request, row in zip(requests, rows, strict=True)
        ]
        if self._process is None and on_finished is not None:
            for completion in completions:
                on_finished(completion)
        return completions

    def sleep(self, level: int) -> None:
        """See `Engine.sleep`. Does nothing to an engine that sleeps already."""
        assert level in (1, 2), level
        if self._asleep:
            return
        self._member.agree(lambda: self._with_living_engine(lambda process: self._quick(process, "sleep", level=level)))
        self._asleep, self._level = TAGS, level
        if level == 2:
            self._version, self._loaded = -1, False

    def wake(self, tags: Collection[str]) -> None:
        """See `Engine.wake`. What is awake already is left alone (SGLang dies of a second wake)."""
        unknown = set(tags) - TAGS
        assert not unknown, unknown
        wanted = sorted(self._asleep & set(tags))
        if wanted:
            self._member.agree(
                lambda: self._with_living_engine(lambda process: self._quick(process, "wake", tags=wanted))
            )
            self._asleep -= set(wanted)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._process is not None:
            self._process.close()
        self._process = None
        if self._transport is not None:
            self._transport.close()

    @property
    def pid(self) -> int | None:
        """The engine's process (and process group) on the leader, None elsewhere."""
        return None if self._process is None else self._process.pid

    @property
    def _link(self) -> Transport:
        assert self._transport is not None, "the leader's alone"
        return self._transport

    def _generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None
    ) -> list[ResponseRow]:
        finished = {position: self._kept[request] for position, request in enumerate(requests) if request in self._kept}
        deadline = time.monotonic() + self._limits.generate_timeout_s

        def ask(process: EngineProcess) -> None:
            if not self._loaded:
                self._kept = {requests[position]: row for position, row in finished.items()}
                raise WeightsLost
            # After a death only what is missing; a position in the call never answers twice.
            missing = [position for position in range(len(requests)) if position not in finished]

            def done(message: list[Any]) -> None:
                index, token_ids, logprobs, finish, version = message
                position = missing[index]
                if version != self._version:
                    raise RunError(f"the engine answered with policy version {version}, not {self._version}")
                assert position not in finished and len(token_ids) == len(logprobs) > 0
                finished[position] = (token_ids, logprobs, finish)
                if on_finished is not None:
                    on_finished(Completion(requests[position], tuple(token_ids), tuple(logprobs), finish))

            process.call(
                "generate",
                timeout_s=max(1.0, deadline - time.monotonic()),
                alive_timeout_s=self._limits.alive_timeout_s,
                on_done=done,
                requests=[request_to_json(requests[position]) for position in missing],
            )

        if len(finished) < len(requests):
            self._with_living_engine(ask)
        self._kept, self._failures = {}, 0
        return [finished[position] for position in range(len(requests))]

    def _quick(self, process: EngineProcess, operation: str, **arguments: Any) -> None:
        process.call(operation, timeout_s=self._limits.update_timeout_s, **arguments)

    def _with_living_engine(self, action: Callable[[EngineProcess], T]) -> T:
        """Do it with a living engine; the leader's alone. Raises RunError after ``max_restarts`` deaths in a row."""
        while True:
            try:
                if self._process is None:
                    self._restart()
                assert self._process is not None
                return action(self._process)
            except EngineDied as death:
                self._note_death(death)

    def _begin(self) -> None:
        self._with_living_engine(lambda process: None)
        self._link.begin()

    def _if_alive(self, action: Callable[[EngineProcess], None]) -> bool:
        """A part of an update that is lost as a whole when the engine dies; whether it lives."""
        if self._process is None:
            return False
        try:
            action(self._process)
        except EngineDied as death:
            self._note_death(death)
            return False
        return True

    def _first_start(self) -> Sequence[str]:
        self._with_living_engine(lambda process: None)
        return self._link.paths

    def _restart(self) -> None:
        """Start the process, give it the weights of the last update where they can be had, put it to sleep as far as
        the one before was."""
        began = time.monotonic()
        self._process = self._start_process()
        self._loaded = self._link.restore(self._process, self._version)
        if self._asleep:
            # Weights that are there must last; others need no room in host memory.
            self._quick(self._process, "sleep", level=1 if self._loaded else self._level)
            if self._asleep != TAGS:
                self._quick(self._process, "wake", tags=sorted(TAGS - self._asleep))
        if self.num_restarts:
            print(f"rollout engine {self.replica}: up again after {time.monotonic() - began:.0f} s", file=sys.stderr)

    def _note_death(self, death: EngineDied) -> None:
        if self._process is not None:
            self._process.kill()
        self._process, self._loaded = None, False
        self._failures += 1
        if self._failures > self._limits.max_restarts:
            raise RunError(
                f"rollout engine {self.replica}: {death}; it was started {self._failures} times in a row "
                "(rollout.max_restarts)"
            ) from None
        self.num_restarts += 1
        print(f"warning: rollout engine {self.replica}: {death}; starting it again", file=sys.stderr, flush=True)
