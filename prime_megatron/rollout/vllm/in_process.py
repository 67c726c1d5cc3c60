"""vLLM in the trainer's own processes, one worker in each rank, beside the trainer's process groups.

vLLM calls it the external launcher: all ranks of a replica run the same scheduler in lockstep, and its tensor-parallel
group is made of the trainer's ranks. The weights are within reach of a plain copy on every device. The price: an engine
that dies takes the run with it; nothing starts it again (a SLURM job resumes from its checkpoint).

Where the weights go, by transport:
    live    straight into the engine's own parameters
    bucket  whole Hugging Face tensors, which vLLM reloads in place
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.errors import InputError, RunError
from prime_megatron.rollout.engine import Completion, Request, check_lengths
from prime_megatron.rollout.process.driver import INSTALL, DriverSettings, FinishedResponse
from prime_megatron.rollout.process.replica import Member
from prime_megatron.types import Bucket
from prime_megatron.weights.manifest import Manifest, compare


class InProcessEngine:
    """See the module. Making it is collective over the world.

    Args:
        member: this rank's part.
        settings: of the engine.
        live: whether weights are written in place (else by buckets).
        manifest: what an update must bring.
    Raises:
        InputError: vLLM is not installed.
        RunError: it does not start.
    """

    def __init__(self, member: Member, settings: DriverSettings, live: bool, manifest: Manifest) -> None:
        self.replica, self.num_replicas, self.num_restarts = member.replica, member.num_replicas, 0
        self._member, self._settings, self._manifest = member, settings, manifest
        self._version = -1
        self._driver = _start(settings, member)
        self._targets = self._driver.parameters() if live else None

    @property
    def version(self) -> int:
        """See `Engine.version`."""
        return self._version

    def named_targets(self) -> Mapping[str, Tensor] | None:
        """The engine's parameters of this tensor-parallel rank, fused as vLLM has them; None but for `live`."""
        return self._targets

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        """See `Engine.update_weights`. Collective over the replica; every rank gives the same buckets.

        Raises:
            RunError: a tensor that the engine's model does not have, or one that did not come, or weights that arrived
                wrong; it is named.
        """
        self._version = -1  # until all of it is there
        if self._targets is None:
            self._reload(buckets, version)
        else:
            assert not list(buckets), "live weights are written in place"
            self._driver.commit(version)
        self._version = version

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. What ``on_finished`` raises on one rank ends the call on all of the replica's."""
        assert self._version >= 0, "generate before the first weight sync"
        check_lengths(requests, self._settings.max_tokens)
        made: dict[int, Completion] = {}
        raised: list[Exception] = []

        def finished(answer: FinishedResponse) -> None:
            request = requests[answer.index]
            made[answer.index] = Completion(request, tuple(answer.token_ids), tuple(answer.logprobs), answer.finish)
            if on_finished is not None and not raised:
                try:
                    on_finished(made[answer.index])
                except Exception as error:
                    raised.append(error)

        def step() -> None:
            # The others are in the same step of the same schedule, and leave it together.
            self._together(raised[0] if raised else None)

        self._driver.generate(requests, finished, step)
        return [made[index] for index in range(len(requests))]

    def sleep(self, level: int) -> None:
        """See `Engine.sleep`."""
        assert level in (1, 2), level
        self._driver.sleep(level)
        if level == 2:
            self._version = -1

    def wake(self, tags: Collection[str]) -> None:
        """See `Engine.wake`."""
        self._driver.wake(tags)

    def close(self) -> None:
        """See `Engine.close`. The trainer's groups stay."""
        if self._driver is not None:
            self._driver.close()
            _leave_groups()
        self._driver, self._targets = None, {}

    def _reload(self, buckets: Iterable[Bucket], version: int) -> None:
        manifest = self._manifest
        manifest.begin()
        for bucket in buckets:
            manifest.take(bucket)
            self._driver.load_tensors(list(zip(bucket.names, bucket.tensors, strict=True)))
        manifest.complete(version)
        self._driver.commit(version)
        if manifest.due:
            compare(manifest.sums(), self._everyones(self._driver.bit_sums()[0]), version)
        manifest.end()

    def _together(self, error: Exception | None) -> None:
        """Raise on every rank of the replica what was to be raised on one. Collective over it."""
        if self._member.group is None:
            if error is not None:
                raise error
            return
        flag = torch.tensor([error is not None], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._member.group)
        if flag.item():
            raise next(entry for entry in self._everyones(error) if entry is not None)

    def _everyones(self, value: Any) -> list[Any]:
        """Of all ranks of the replica. Collective over it."""
        if self._member.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._member.group)
        dist.all_gather_object(values, value, group=self._member.group)
        return values


def _start(settings: DriverSettings, member: Member) -> Any:
    """vLLM's driver in this process, which is otherwise as it was."""
    with _undisturbed():
        try:
            from prime_megatron.rollout.vllm.driver import VllmDriver
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.split(".")[0] == "vllm":
                raise InputError(f"rollout.engine: vllm cannot start: {error}; {INSTALL['vllm']}") from None
            raise
        os.environ.setdefault("RANK", str(dist.get_rank()))
        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
        try:
            with _shared_memory_of_its_own(member):
                return VllmDriver(settings)
        except InputError:
            raise
        except Exception as error:
            what = " ".join(str(error).split())[:500]
            raise RunError(
                f"rollout engine {member.replica}: vLLM cannot start: {type(error).__name__}: {what}"
            ) from error


@contextmanager
def _shared_memory_of_its_own(member: Member) -> Iterator[None]:
    """On a CPU a tensor-parallel group has named shared memory. Its name is the same for all engines of this kind, so
    another run on this node, or what a killed one left, would be in the way: give it one of its own, for as long as
    the ranks need to find it."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    token = member.agree(lambda: f"prime-{secrets.token_hex(8)}")
    name = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: token + name(communicator).replace("/", ""))
    try:
        yield
    finally:
        _CPUSHMDistributed.make_group_name = name
        for file in Path("/dev/shm").glob(f"{token}*"):
            file.unlink(missing_ok=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """vLLM seeds the process's random streams and takes hold of its threads; the trainer wants its own back."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    set_threads, threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave_groups() -> None:
    """Forget vLLM's groups, so that another engine of this process can make its own; torch's world stays."""
    from vllm.distributed import parallel_state

    parallel_state.destroy_model_parallel()
    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
    parallel_state._WORLD = None
