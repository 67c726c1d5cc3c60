"""From a config to the parts of a run: models, engine, data, logs. The only place that knows how they are made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import torch

from prime_megatron import device
from prime_megatron.checkpoint.run import Checkpoints
from prime_megatron.config import Granularity, StageConfig, TrainConfig
from prime_megatron.config.reward_path import describe_reward_path
from prime_megatron.config.roles import has_told_teacher
from prime_megatron.data.actions import keeps_form
from prime_megatron.evaluate.held_out import Evaluator, HeldOut, held_out_sets, suite_sets
from prime_megatron.mcore.host_memory import HostPool
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role
from prime_megatron.mcore.spec import describe_layers
from prime_megatron.metrics import TRAIN_COLUMNS, Clock, open_metrics_log, open_samples_log
from prime_megatron.parallel.collectives import OverRanks, agree_on, on_first_rank
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.collect import Collector, ReplayCollector
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.generate import Generator
from prime_megatron.rollout.held import HeldEngine
from prime_megatron.rollout.recording import Recorder
from prime_megatron.run.colocation import Colocation, sleep_level
from prime_megatron.run.engines import build_engine, build_sync
from prime_megatron.run.host_memory import check_host_memory
from prime_megatron.run.inputs import Inputs, read_inputs
from prime_megatron.run.models import DTYPES, Roles, build_roles
from prime_megatron.run.nonfinite import NONFINITE_FOLDER, NonFinite
from prime_megatron.run.output_dir import check_output_dir, own_output_dir
from prime_megatron.run.parts import Parts
from prime_megatron.run.prm_health import PrmHealth, form_table
from prime_megatron.run.prm_note import reference_warning
from prime_megatron.run.reporter import Reporter
from prime_megatron.run.residency import Residency
from prime_megatron.run.speed import Speed
from prime_megatron.run.stop import Stop
from prime_megatron.run.tracing import Tracing
from prime_megatron.run.transport import describe_engine
from prime_megatron.run.verification import Verification
from prime_megatron.run.watchdog import STALL_FOLDER, Watchdog
from prime_megatron.step.batch import Batcher
from prime_megatron.step.engine_check import EngineCheck
from prime_megatron.step.plan import plan_step
from prime_megatron.step.prm import PrmHeldOut
from prime_megatron.step.prm_head import held_out_objective
from prime_megatron.step.works import works
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers, describe_custom


def open_parts(config: TrainConfig, *, resume: str | None, overwrite: bool) -> AbstractContextManager[Parts]:
    """The parts of a run; they and the process groups end with the block. See ``Assembly.opened``."""
    return Assembly(config).opened(resume=resume, overwrite=overwrite)


class Assembly:
    """Makes the parts of one run from its config. Every method is collective over the world.

    What one part needs of another is here: what was read first, then the models, then what stands on them.
    """

    topology: Topology
    verifiers: Verifiers
    inputs: Inputs
    roles: Roles
    residency: Residency
    stop: Stop
    watchdog: Watchdog
    tracing: Tracing

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @contextmanager
    def opened(self, *, resume: str | None, overwrite: bool) -> Iterator[Parts]:
        """Start the process groups, read everything, make the output folder, build the parts; end them all afterwards.

        Raises:
            InputError: what is wrong with the output folder, the data or the models; no folder was made.
        """
        config, output = self.config, Path(self.config.run.output_dir)
        self.stop = Stop(config.checkpoint)
        self.topology = start_megatron(
            config.parallel, seed=config.run.seed, backend=device.backend_name(), timeout_s=config.parallel.timeout_s
        )
        try:
            agree_on(lambda: check_output_dir(output, resume=resume, overwrite=overwrite))
            with build_verifiers(self.verify_options(), config.verify.custom) as self.verifiers, ExitStack() as stack:
                agree_on(self.verifiers.try_custom)
                self.inputs = read_inputs(config, self.verifiers, self.topology)
                check_host_memory(config)
                pool = stack.enter_context(closing(HostPool(self.say)))
                self.roles = build_roles(config, self.topology, plan_step(config), pool)
                self.residency = Residency(config.parallel.offload, self.roles.distinct, works(config))
                with on_first_rank(lambda: own_output_dir(output, resume=resume, overwrite=overwrite)):
                    parts = self.parts()
                    try:
                        yield parts
                    finally:
                        parts.close()
        finally:
            stop_megatron()

    def say(self, line: str) -> None:
        """A line of the first rank's, before there is a log."""
        if self.topology.rank == 0:
            print(line, file=sys.stderr, flush=True)

    def verify_options(self) -> VerifyOptions:
        """What this rank's verifiers may use: its share of the node's workers."""
        verify = self.config.verify
        workers = max(1, verify.workers // self.config.launch.processes_per_node)
        return VerifyOptions(num_workers=workers, timeout_s=verify.timeout_s, code=verify.code)

    def parts(self) -> Parts:
        """Connect everything."""
        config, roles, inputs = self.config, self.roles, self.inputs
        self.watchdog = build_watchdog(config, self.topology, self.stop)
        engine = HeldEngine(self.start_engine())
        sync = build_sync(config, self.topology, roles.policy, engine)
        colocation = Colocation(engine, sync, roles.policy, self.residency)
        # One rank of each engine replica reports its answers.
        leads = self.topology.rank % config.rollout.tensor == 0
        in_form = keeps_form if config.verify.action_form else None
        generator = Generator(engine, leads, self.verifiers, inputs.tokenizer, colocation.publish_again, in_form)
        reporter = self.reporter(generator, colocation, engine)
        for line in self.description():
            reporter.log.message(line)
        collector = self.collector(generator, reporter)
        nonfinite = build_nonfinite(config, self.topology, reporter.log.warn)
        reduce = OverRanks(self.topology.data)
        health = self.prm_health(reduce)
        stateful = {
            "prompts": inputs.prompts, "collector": collector, "reporter": reporter, "sync": sync,
            "nonfinite": nonfinite, **({"prm_health": health} if health.watches else {}),
        }  # fmt: skip
        return Parts(
            export_to=Path(config.run.output_dir) if config.checkpoint.export_final else None,
            topology=self.topology,
            roles=roles,
            engine=engine,
            colocation=colocation,
            verifiers=self.verifiers,
            prompts=inputs.prompts,
            collector=collector,
            batcher=Batcher.from_config(config, self.topology, self.step_ends()),
            engine_check=EngineCheck(config, roles.policy, reduce, reporter.log.message),
            prm_held_out=PrmHeldOut(
                inputs.labelled,
                Batcher(self.topology, config.packing),
                objective=held_out_objective(config.prm),
                reduce=reduce,
                at_once=config.rollout.prompts_per_step,
            ),
            prm_health=health,
            reduce=reduce,
            clock=reporter.clock,
            tracing=self.tracing,
            reporter=reporter,
            stop=self.stop,
            watchdog=self.watchdog,
            nonfinite=nonfinite,
            checkpoints=Checkpoints(
                config,
                self.saved(),
                stateful,
                reporter.log,
                whole=self.residency.whole,
                leave=self.residency.by_phase,
            ),
        )

    def saved(self) -> list[Role]:
        """The models of a checkpoint: those that learn, and a teacher that was copied from one of them."""
        copied = [self.roles.teacher] if has_told_teacher(self.config) else []
        return [*self.roles.learning, *(role for role in copied if role is not None)]

    def prm_health(self, reduce: OverRanks) -> PrmHealth:
        """The watch over the PRM; without prm.health it does nothing."""
        config, inputs = self.config, self.inputs
        watches = config.prm.health.every > 0
        form_V = form_table(inputs.tokenizer, config.prm.step_delimiter, inputs.family.vocab) if watches else None
        return PrmHealth(config, inputs.labelled, Batcher(self.topology, config.packing), form_V, reduce)

    def start_engine(self) -> Engine:
        """The engine. Where models move it starts on a device that they have left, and sleeps before they come back:
        the two are never there together."""
        self.residency.leave()
        engine = build_engine(
            self.config,
            self.topology,
            self.inputs.tokenizer.eos_token_ids,
            longest=0 if self.inputs.suite is None else self.inputs.suite.longest,
        )
        if self.residency.moves:
            engine.sleep(sleep_level())
        self.residency.come_back()
        return engine

    def description(self) -> list[str]:
        """What a run says of itself at its start: engine, layers, reward path, rewards of the user's own."""
        config = self.config
        layers = describe_layers(config.models.layers, DTYPES[config.models.dtype])
        custom = describe_custom(config.verify.custom)
        return [describe_engine(config), layers, describe_reward_path(config), *custom, *self.inputs.tokenizer.told]

    def reporter(self, generator: Generator, colocation: Colocation, engine: Engine) -> Reporter:
        """The run's voice: logs, evaluation, samples. The watchdog is told of every stage, as the log is."""
        config, topology, inputs, watchdog = self.config, self.topology, self.inputs, self.watchdog
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
        for line in filter(None, (*inputs.warnings, reference_warning(config))):
            log.warn(line)
        self.tracing = Tracing(config.log, output, topology, log.message)
        return Reporter(
            config=config,
            topology=topology,
            plan=plan_step(config),
            speed=Speed(inputs.family, DTYPES[config.models.dtype], topology.sizes.world),
            evaluator=Evaluator(self.held_out(), generator),
            clock=Clock(device.synchronize, lambda at: (log.stage(at), watchdog.beat(at))[0], self.tracing.stage),
            log=log,
            samples=open_samples_log(output, config.log, rank=topology.rank),
            recorder=Recorder(config.rollout.record if topology.rank == 0 else None),
            inputs=inputs,
            memory=colocation.take_readings,
            restarts=lambda: engine.num_restarts,
            verification=lambda: Verification(self.verifiers.take_usage(), generator.take_waited_s()),
        )

    def held_out(self) -> list[HeldOut]:
        """What is evaluated: data.eval, and the sets of eval.suite, whose contract the first rank writes."""
        config, inputs = self.config, self.inputs
        plain = held_out_sets(inputs.held_out, config.eval, config.rollout.sampling, config.run.seed)
        if inputs.suite is None:
            return plain
        if self.topology.rank == 0:
            inputs.suite.write_contract(Path(config.run.output_dir), config, self.verify_options())
        return plain + suite_sets(inputs.suite.ready, config.eval)

    def collector(self, generator: Generator, reporter: Reporter) -> Collector | ReplayCollector:
        """Who fills the batches: the engine, or a recording."""
        config = self.config
        if config.rollout.engine == "replay":
            assert config.rollout.replay is not None
            return ReplayCollector(config.rollout.replay)
        return Collector(
            self.inputs.prompts,
            generator,
            config.rollout,
            config.run.seed,
            self.stop.requested,
            reporter.write_rejected,
        )

    def step_ends(self) -> torch.Tensor | None:
        """Which tokens end a step, bool [vocabulary]; None where the PRM's rewards are not by step."""
        prm = self.config.prm
        if prm.granularity is not Granularity.step:
            return None
        return self.inputs.tokenizer.step_end_table(prm.step_delimiter, self.inputs.family.vocab)


def build_watchdog(config: TrainConfig | StageConfig, topology: Topology, stop: Stop) -> Watchdog:
    """The thread that ends this process when it gets nowhere."""
    return Watchdog(
        Path(config.run.output_dir) / STALL_FOLDER,
        topology.rank,
        topology.sizes.world,
        stall_timeout_s=config.run.stall_timeout_s,
        grace_s=config.checkpoint.grace_s,
        stop=stop,
    )


def build_nonfinite(config: TrainConfig | StageConfig, topology: Topology, warn: Callable[[str], None]) -> NonFinite:
    """The counter of skipped updates; one rank of every model-parallel block dumps its batch."""
    return NonFinite(
        Path(config.run.output_dir) / NONFINITE_FOLDER,
        config.run.max_nonfinite,
        topology.leads_model,
        topology.rank,
        warn,
    )
