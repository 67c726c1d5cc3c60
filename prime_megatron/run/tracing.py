"""A window of steps in which every rank records what it does when (`log.trace_steps`).

Nothing in the program knows of it. While the window is open, the calls named here are replaced by ones that note their
beginning and end; before and after it there is nothing that could cost time. Stages come from the run's clock.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from prime_megatron import device
from prime_megatron.config import LogConfig
from prime_megatron.mcore.offload import HostCopy
from prime_megatron.mcore.optimizer import Optimizer
from prime_megatron.mcore.role import Role
from prime_megatron.mcore.schedule import MICRO_BATCH_CALLS
from prime_megatron.metrics.spans import TRACE_FILE, Spans, join_ranks
from prime_megatron.parallel.collectives import from_rank, gather_all
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.generate import Generator
from prime_megatron.rollout.held import HeldEngine
from prime_megatron.verify.process import WorkerProcess
from prime_megatron.verify.registry import Verifiers
from prime_megatron.weights.sync import WeightSync

TRACE_FOLDER = "trace"
"""Below run.output_dir."""


@dataclass(frozen=True)
class Call:
    """A function of a class or module that is a span while the window is open."""

    owner: Any
    attribute: str
    category: str
    name: Callable[..., str]
    """From the call's arguments: what the span is called."""


def _named(owner: Any, category: str, **names: str) -> list[Call]:
    return [Call(owner, attribute, category, lambda *_, name=name, **__: name) for attribute, name in names.items()]


def _by_model(owner: Any, category: str, **verbs: str) -> list[Call]:
    """Of an object with a name: "policy learns"."""
    return [
        Call(owner, attribute, category, lambda self, *_, verb=verb, **__: f"{self.name} {verb}")
        for attribute, verb in verbs.items()
    ]


_COLLECTIVES = (
    "allreduce", "allreduce_coalesced", "allgather", "allgather_coalesced", "_allgather_base", "all_gather_single",
    "all_gather_single_coalesced", "allgather_into_tensor_coalesced", "reduce", "reduce_scatter",
    "reduce_scatter_single", "reduce_scatter_single_coalesced", "_reduce_scatter_base", "broadcast", "gather",
    "reduce_scatter_tensor_coalesced", "scatter", "alltoall", "alltoall_base", "all_to_all_single", "barrier", "send",
    "recv", "_end_coalescing",
)  # fmt: skip
"""Of torch's process groups, where every library's communication passes; releases have some of them."""


def calls() -> list[Call]:
    """What is recorded besides the stages, by category."""
    communication = {name: name.strip("_") for name in _COLLECTIVES if hasattr(dist.ProcessGroup, name)}
    return [
        *_named(dist.ProcessGroup, "communication", **communication),
        *_named(dist.Work, "communication", wait="wait"),
        *(Call(owner, attribute, "micro-batch", name) for owner, attribute, name in MICRO_BATCH_CALLS),
        *_by_model(Role, "model", forward="reads", learn="learns"),
        *_named(Optimizer, "model", step="optimizer step"),
        *_by_model(HostCopy, "memory", send="to host", bring="to device"),
        *_named(Generator, "engine", groups="prompts to verified groups"),
        *_named(HeldEngine, "engine", generate="generate", update_weights="update weights", sleep="sleep", wake="wake"),
        *_named(WeightSync, "engine", publish="weight sync"),
        *_named(Verifiers, "verification", submit="submit an answer"),
        *_named(WorkerProcess, "verification", ask="grade an answer"),
    ]


class Tracing:
    """Records the window, if the config has one, and writes it when it ends. Every method is collective.

    Args:
        config: the log section.
        output_dir: the run's folder.
        topology: this rank's place, named in the trace.
        tell: says where the trace is, on the first rank.
    """

    def __init__(self, config: LogConfig, output_dir: Path, topology: Topology, tell: Callable[[str], None]) -> None:
        self._window = config.trace_steps
        self._operators = config.trace_detail == "operators"
        self._folder = output_dir / TRACE_FOLDER
        self._topology = topology
        self._tell = tell
        self._spans: Spans | None = None
        self._profiler: torch.profiler.profile | None = None
        self._replaced = ExitStack()

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """A step is in the block; recorded if it lies in the window, which is written when its last step is over."""
        if self._window is None or not self._window[0] <= index <= self._window[1]:
            yield
            return
        if self._spans is None:
            self._begin()
        begin_s = time.perf_counter()
        yield
        if self._spans is not None:
            self._spans.add(f"step {index}", "step", begin_s, time.perf_counter())
        if index == self._window[1]:
            self.finish()

    def stage(self, name: str, begin_s: float, end_s: float) -> None:
        """A stage is over; fits `Clock`'s on_span."""
        if self._spans is not None:
            self._spans.add(name, "stage", begin_s, end_s)

    def finish(self) -> None:
        """Write what is recorded: each rank its own file, the first rank one of all. A rank that cannot is left out,
        which is told; the run goes on."""
        if self._spans is None:
            return
        spans, self._spans = self._spans, None
        self.close()
        trouble = None
        try:
            spans.write(self._folder)
            self._write_operators()
        except OSError as error:
            trouble = f"rank {self._topology.rank}: {error.strerror}"
        troubles = [text for text in gather_all(trouble) if text is not None]
        if self._topology.rank == 0:
            self._join(troubles)

    def close(self) -> None:
        """Put everything back that was replaced."""
        self._replaced.close()

    def _begin(self) -> None:
        """Time 0 is the first rank's; clocks of one host agree, those of several as well as their NTP."""
        zero_ns = from_rank(time.time_ns())
        zero_s = time.perf_counter() - (time.time_ns() - zero_ns) / 1e9
        at, rank = self._topology.at, self._topology.rank
        label = f"rank {rank}: tensor {at.tensor} pipeline {at.pipeline} context {at.context} data {at.data}"
        self._spans = Spans(rank, label, zero_s)
        for call in calls():
            self._replace(call, self._spans)
        if self._operators:
            device.record_memory(True)
            self._profiler = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profiler.start()

    def _replace(self, call: Call, spans: Spans) -> None:
        # As it lies in the class: what is read from it is a C++ method without its binding.
        stored, function = vars(call.owner)[call.attribute], getattr(call.owner, call.attribute)

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            begin_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spans.add(call.name(*args, **kwargs), call.category, begin_s, time.perf_counter())

        setattr(call.owner, call.attribute, recorded)
        self._replaced.callback(setattr, call.owner, call.attribute, stored)

    def _write_operators(self) -> None:
        """torch's profile of this rank, and on a GPU its memory's history (pytorch.org/memory_viz reads it)."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        profiler.export_chrome_trace(str(self._folder / f"operators-{self._topology.rank:05d}.json.gz"))
        device.dump_memory(self._folder / f"memory-{self._topology.rank:05d}.pickle")
        device.record_memory(False)

    def _join(self, troubles: list[str]) -> None:
        try:
            missing = join_ranks(self._folder, self._topology.sizes.world)
        except OSError as error:
            self._tell(f"warning: trace: {self._folder / TRACE_FILE}: cannot be written ({error.strerror})")
            return
        self._tell(f"trace: {self._folder / TRACE_FILE}; open it in https://ui.perfetto.dev")
        if missing or troubles:
            self._tell(f"warning: trace: without ranks {missing}: {'; '.join(troubles) or 'no file'}")
