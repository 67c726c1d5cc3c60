"""From a config to the parts of a run: models, engine, data, logs. The only place that knows how they are made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from prime_megatron import device
from prime_megatron.algo.reduction import Reduction
from prime_megatron.checkpoint.run import Checkpoints
from prime_megatron.config import Granularity, Offload, SftConfig, TrainConfig
from prime_megatron.config.reward_path import describe_reward_path
from prime_megatron.data.stream import PromptStream
from prime_megatron.errors import InputError
from prime_megatron.evaluate.held_out import Evaluator
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.spec import describe_layers
from prime_megatron.metrics import TRAIN_COLUMNS, Clock, open_metrics_log, open_samples_log
from prime_megatron.parallel.collectives import OverRanks, from_rank
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.collect import Collector, ReplayCollector
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.generate import Generator
from prime_megatron.rollout.recording import Recorder
from prime_megatron.run.colocation import Colocation, sleep_level
from prime_megatron.run.engines import build_engine, build_sync
from prime_megatron.run.inputs import Inputs, read_inputs
from prime_megatron.run.models import DTYPES, Roles, build_roles
from prime_megatron.run.nonfinite import NONFINITE_FOLDER, NonFinite
from prime_megatron.run.output_dir import check_output_dir, own_output_dir
from prime_megatron.run.reporter import Reporter
from prime_megatron.run.stop import Stop
from prime_megatron.run.transport import describe_engine
from prime_megatron.run.watchdog import STALL_FOLDER, Watchdog
from prime_megatron.step.batch import Batcher
from prime_megatron.step.plan import plan_step
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers, describe_custom
from prime_megatron.weights.sync import WeightSync


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
    reduce: Reduction
    clock: Clock
    reporter: Reporter
    stop: Stop
    watchdog: Watchdog
    nonfinite: NonFinite
    checkpoints: Checkpoints

    def save_models(self) -> None:
        """Export policy and PRM as HF folders below the output folder. Collective."""
        for role in (self.roles.policy, self.roles.prm):
            if role is not None and self.export_to is not None:
                folder = self.export_to / role.name
                if self.topology.rank == 0 and folder.exists():
                    shutil.rmtree(folder)  # of an attempt that ended while it exported
                dist.barrier()
                role.export(folder)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Handle stop signals and watch for stalls within the block."""
        with self.stop.installed(), self.watchdog.watching():
            yield

    def close(self) -> None:
        """End the engine and the logs."""
        self.engine.close()
        self.reporter.log.close()
        self.reporter.samples.close()


@contextmanager
def open_parts(config: TrainConfig, *, resume: str | None, overwrite: bool) -> Iterator[Parts]:
    """Start the process groups, read everything, make the output folder, build the parts; end them all afterwards.

    Raises:
        InputError: what is wrong with the output folder, the data or the models; no folder was made.
    """
    output = Path(config.run.output_dir)
    stop = Stop(config.checkpoint)
    topology = start_megatron(
        config.parallel, seed=config.run.seed, backend=device.backend_name(), timeout_s=config.parallel.timeout_s
    )
    try:
        agree_on(lambda: check_output_dir(output, resume=resume, overwrite=overwrite))
        workers = max(1, config.verify.workers // config.launch.processes_per_node)
        options = VerifyOptions(num_workers=workers, timeout_s=config.verify.timeout_s)
        with build_verifiers(options, config.verify.custom) as verifiers:
            agree_on(verifiers.try_custom)
            inputs = read_inputs(config, verifiers)
            roles = build_roles(config, topology, plan_step(config))
            with on_first_rank(lambda: own_output_dir(output, resume=resume, overwrite=overwrite)):
                parts = build_parts(config, topology, verifiers, inputs, roles, stop)
                try:
                    yield parts
                finally:
                    parts.close()
    finally:
        stop_megatron()


@contextmanager
def on_first_rank(enter: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A context of the first rank's, such as a lock; what it refuses is raised on all. Collective over the world."""
    with ExitStack() as stack:
        agree_on(lambda: stack.enter_context(enter()))
        yield


def agree_on(action: Callable[[], None]) -> None:
    """Run an action of the first rank's; what it refuses is raised on all. Collective over the world.

    Raises:
        InputError: as the action.
    """
    refusal = None
    if dist.get_rank() == 0:
        try:
            action()
        except InputError as error:
            refusal = str(error)
    refusal = from_rank(refusal)
    if refusal is not None:
        raise InputError(refusal)


def build_parts(
    config: TrainConfig, topology: Topology, verifiers: Verifiers, inputs: Inputs, roles: Roles, stop: Stop
) -> Parts:
    """Connect everything. Collective over the world."""
    watchdog = build_watchdog(config, topology, stop)
    engine = start_engine(config, topology, inputs, roles)
    sync = build_sync(config, topology, roles.policy, engine)
    colocation = build_colocation(config, engine, sync, roles)
    generator = Generator(
        engine, _leads_replica(config, topology), verifiers, inputs.tokenizer, colocation.publish_again
    )
    reporter = build_reporter(config, topology, inputs, generator, watchdog.beat, colocation.take_readings, engine)
    layers = describe_layers(DTYPES[config.models.dtype])
    for line in (describe_engine(config), layers, describe_reward_path(config), *describe_custom(config.verify.custom)):
        reporter.log.message(line)
    collector = _collector(config, inputs.prompts, generator, stop)
    nonfinite = build_nonfinite(config, topology, reporter.log.warn)
    stateful = {
        "prompts": inputs.prompts, "collector": collector, "reporter": reporter, "sync": sync, "nonfinite": nonfinite,
    }  # fmt: skip
    return Parts(
        export_to=Path(config.run.output_dir) if config.checkpoint.export_final else None,
        topology=topology,
        roles=roles,
        engine=engine,
        colocation=colocation,
        verifiers=verifiers,
        prompts=inputs.prompts,
        collector=collector,
        batcher=Batcher.from_config(config, topology, _step_ends(config, inputs)),
        reduce=OverRanks(topology.data),
        clock=reporter.clock,
        reporter=reporter,
        stop=stop,
        watchdog=watchdog,
        nonfinite=nonfinite,
        checkpoints=Checkpoints(config, roles.learning, stateful, reporter.log),
    )


def start_engine(config: TrainConfig, topology: Topology, inputs: Inputs, roles: Roles) -> Engine:
    """The engine. With parallel.offload generation it starts on a device that the models have left, and sleeps before
    they come back: its share is one of the whole device, and the two are never there together."""
    moved = [] if config.parallel.offload is Offload.none else roles.distinct
    for role in moved:
        role.offload(gradients=False)
    engine = build_engine(config, topology, inputs.tokenizer.eos_token_ids)
    if moved:
        engine.sleep(sleep_level())
    for role in moved:
        role.onload()
    return engine


def build_colocation(config: TrainConfig, engine: Engine, sync: WeightSync, roles: Roles) -> Colocation:
    """Who has the memory when; models move only where parallel.offload says so."""
    if config.parallel.offload is Offload.none:
        return Colocation(engine, sync, models=roles.distinct)
    others = [role for role in roles.distinct if role is not roles.policy]
    return Colocation(engine, sync, roles.policy, others, models=roles.distinct)


def build_watchdog(config: TrainConfig | SftConfig, topology: Topology, stop: Stop) -> Watchdog:
    """The thread that ends this process when it gets nowhere."""
    return Watchdog(
        Path(config.run.output_dir) / STALL_FOLDER,
        topology.rank,
        topology.sizes.world,
        stall_timeout_s=config.run.stall_timeout_s,
        grace_s=config.checkpoint.grace_s,
        stop=stop,
    )


def build_nonfinite(config: TrainConfig | SftConfig, topology: Topology, warn: Callable[[str], None]) -> NonFinite:
    """The counter of skipped updates; one rank of every model-parallel block dumps its batch."""
    return NonFinite(
        Path(config.run.output_dir) / NONFINITE_FOLDER,
        config.run.max_nonfinite,
        topology.leads_model,
        topology.rank,
        warn,
    )


def build_reporter(
    config: TrainConfig,
    topology: Topology,
    inputs: Inputs,
    generator: Generator,
    beat: Callable[[str], None],
    memory: Callable[[], dict[str, float]],
    engine: Engine,
) -> Reporter:
    """The run's voice: logs, evaluation, samples. ``beat`` is told of every stage, as the log is."""
    output = Path(config.run.output_dir)
    log = open_metrics_log(
        output,
        config.log,
        rank=topology.rank,
        name=config.run.name,
        num_steps=config.run.steps,
        columns=TRAIN_COLUMNS,
        run_config=config.model_dump(mode="json"),
        slurm_comment=config.launch.slurm_comment,
    )
    if inputs.num_held_out_skipped:
        log.warn(f"data.eval: {inputs.num_held_out_skipped} prompts over data.max_prompt_tokens are skipped")
    return Reporter(
        config=config,
        topology=topology,
        plan=plan_step(config),
        family=inputs.family,
        evaluator=Evaluator(inputs.held_out, generator, config.eval, config.rollout.sampling, config.run.seed),
        clock=Clock(device.synchronize, lambda stage: (log.stage(stage), beat(stage))[0]),
        log=log,
        samples=open_samples_log(output, config.log, rank=topology.rank),
        recorder=Recorder(config.rollout.record if topology.rank == 0 else None),
        prompts=inputs.prompts,
        memory=memory,
        restarts=lambda: engine.num_restarts,
    )


def _leads_replica(config: TrainConfig, topology: Topology) -> bool:
    """One rank of each engine replica reports its answers."""
    return topology.rank % config.rollout.tensor == 0


def _collector(
    config: TrainConfig, prompts: PromptStream, generator: Generator, stop: Stop
) -> Collector | ReplayCollector:
    if config.rollout.engine == "replay":
        assert config.rollout.replay is not None
        return ReplayCollector(config.rollout.replay)
    return Collector(prompts, generator, config.rollout, config.run.seed, stop.requested)


def _step_ends(config: TrainConfig, inputs: Inputs) -> torch.Tensor | None:
    if config.prm.granularity is not Granularity.step:
        return None
    return inputs.tokenizer.step_end_table(config.prm.step_delimiter, inputs.family.vocab)
