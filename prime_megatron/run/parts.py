"""What a PrimeTrainer works with."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from prime_megatron.algo.reduction import Reduction
from prime_megatron.checkpoint.run import Checkpoints
from prime_megatron.data.stream import PromptStream
from prime_megatron.metrics import Clock
from prime_megatron.parallel.collectives import agree_on
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.collect import Collector, ReplayCollector
from prime_megatron.rollout.engine import Engine
from prime_megatron.run.colocation import Colocation
from prime_megatron.run.model_card import train_card, write_card
from prime_megatron.run.models import Roles
from prime_megatron.run.nonfinite import NonFinite
from prime_megatron.run.prm_health import PrmHealth
from prime_megatron.run.reporter import Reporter
from prime_megatron.run.stop import Stop
from prime_megatron.run.tracing import Tracing
from prime_megatron.run.watchdog import Watchdog
from prime_megatron.step.batch import Batcher
from prime_megatron.step.engine_check import EngineCheck
from prime_megatron.step.prm import PrmHeldOut
from prime_megatron.verify import Verifiers


@dataclass(frozen=True)
class Parts:
    """Everything a PrimeTrainer works with."""

    export_to: Path | None
    """Where the trained models go as HF folders; None: nowhere."""
    topology: Topology
    roles: Roles
    engine: Engine
    colocation: Colocation
    verifiers: Verifiers
    prompts: PromptStream
    collector: Collector | ReplayCollector
    batcher: Batcher
    engine_check: EngineCheck
    prm_held_out: PrmHeldOut
    prm_health: PrmHealth
    reduce: Reduction
    clock: Clock
    tracing: Tracing
    reporter: Reporter
    stop: Stop
    watchdog: Watchdog
    nonfinite: NonFinite
    checkpoints: Checkpoints

    def save_models(self) -> None:
        """Export policy and PRM as HF folders with their cards below the output folder. Collective."""
        reporter = self.reporter
        for role in (self.roles.policy, self.roles.prm):
            if role is not None and self.export_to is not None:
                folder = self.export_to / role.name
                if self.topology.rank == 0 and folder.exists():
                    shutil.rmtree(folder)  # of an attempt that ended while it exported
                dist.barrier()
                self.colocation.reads(role)
                role.export(folder)
                card = functools.partial(train_card, reporter.config, role.name, reporter.progress.evaluated)
                agree_on(lambda folder=folder, card=card: write_card(folder, card()))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Handle stop signals and watch for stalls within the block."""
        with self.stop.installed(), self.watchdog.watching():
            yield

    def close(self) -> None:
        """End the engine, the trace and the logs."""
        self.tracing.close()
        self.engine.close()
        self.reporter.log.close()
        self.reporter.samples.close()
