"""From a config to the parts of a run: models, engine, data, logs. The only place that knows how they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from prime_megatron import device
from prime_megatron.algo.reduction import Reduction
from prime_megatron.config import Granularity, OptimizerConfig, TrainConfig
from prime_megatron.data.rows import read_prompt_rows
from prime_megatron.data.stream import PromptStream, eval_prompts
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluation import Evaluator
from prime_megatron.mcore.families import FamilyConfig
from prime_megatron.mcore.hf_config import read_config
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role
from prime_megatron.metrics import TRAIN_COLUMNS, Clock, MetricsLog, open_metrics_log, open_samples_log
from prime_megatron.output_dir import prepare_output_dir
from prime_megatron.parallel.collectives import OverRanks, from_rank
from prime_megatron.parallel.topology import Topology
from prime_megatron.report import Reporter
from prime_megatron.reshard.local import LocalSync
from prime_megatron.reshard.plan import whole_tensors
from prime_megatron.reshard.sync import WeightSync
from prime_megatron.rollout.collect import Collector, ReplayCollector
from prime_megatron.rollout.embedded import EmbeddedEngine
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.generate import Generator
from prime_megatron.rollout.recording import Recorder
from prime_megatron.step_batch import Batcher
from prime_megatron.step_plan import StepPlan, plan_step
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Roles:
    """The models of the step plan; None where the plan has no such pass."""

    policy: Role
    prm: Role | None
    reference: Role | None
    """The PRM's frozen reference."""
    policy_reference: Role | None
    """The policy's, for its KL term; the same object where both are one model."""

    @property
    def distinct(self) -> list[Role]:
        """Every model once."""
        roles = [self.policy, self.prm, self.reference, self.policy_reference]
        return list({id(role): role for role in roles if role is not None}.values())


@dataclass(frozen=True)
class Parts:
    """Everything a PrimeTrainer works with."""

    export_to: Path | None
    """Where the trained models go as HF folders; None: nowhere."""
    topology: Topology
    roles: Roles
    engine: Engine
    sync: WeightSync
    verifiers: Verifiers
    prompts: PromptStream
    collector: Collector | ReplayCollector
    batcher: Batcher
    reduce: Reduction
    clock: Clock
    reporter: Reporter

    def save_models(self) -> None:
        """Export policy and PRM as HF folders below the output folder. Collective."""
        for role in (self.roles.policy, self.roles.prm):
            if role is not None and self.export_to is not None:
                role.export(self.export_to / role.name)

    def close(self) -> None:
        """End the engine, the verifiers' processes and the logs."""
        self.engine.close()
        self.verifiers.close()
        self.reporter.log.close()
        self.reporter.samples.close()


@contextmanager
def open_parts(config: TrainConfig, *, resume: str | None, overwrite: bool) -> Iterator[Parts]:
    """Start the process groups and the output folder, build the parts, and end them all afterwards."""
    topology = start_megatron(
        config.parallel,
        seed=config.run.seed,
        backend=device.backend_name(),
        timeout_s=config.parallel.timeout_s,
    )
    try:
        open_output_dir(Path(config.run.output_dir), resume=resume, overwrite=overwrite)
        parts = build_parts(config, topology)
        try:
            yield parts
        finally:
            parts.close()
    finally:
        stop_megatron()


def open_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> None:
    """Make the folder on one rank; a refusal is raised on all.

    Raises:
        InputError: the folder is not empty and neither option was given, or cannot be made.
    """
    refusal = None
    if dist.get_rank() == 0:
        try:
            prepare_output_dir(path, resume=resume, overwrite=overwrite)
        except InputError as error:
            refusal = str(error)
    refusal = from_rank(refusal)
    if refusal is not None:
        raise InputError(refusal)


def build_parts(config: TrainConfig, topology: Topology) -> Parts:
    """Load and connect everything. Collective over the world.

    Raises:
        InputError: a model folder, a tokenizer, a data file or a layout that does not fit.
    """
    policy_folder = _folder(config.models.policy.path)
    family = read_config(policy_folder)
    tokenizer = load_tokenizer(policy_folder, family.vocab, trust_remote_code=config.models.trust_remote_code)
    rows = read_prompt_rows(config.data.train, config.data.system_prompt)
    prompts = PromptStream(
        rows,
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )
    workers = max(1, config.verify.workers // config.launch.processes_per_node)
    verifiers = build_verifiers(VerifyOptions(num_workers=workers, timeout_s=config.verify.timeout_s))
    for ability in sorted({row.ability for row in rows}):
        verifiers.require(ability)
    roles = build_roles(config, topology, plan_step(config))
    engine = build_engine(config, topology, tokenizer)
    generator = Generator(engine, _speaks(config, topology), verifiers, tokenizer)
    reporter = build_reporter(config, topology, tokenizer, generator, family)
    return Parts(
        export_to=Path(config.run.output_dir) if config.checkpoint.export_final else None,
        topology=topology,
        roles=roles,
        engine=engine,
        sync=build_sync(config, topology, roles.policy, engine),
        verifiers=verifiers,
        prompts=prompts,
        collector=_collector(config, prompts, generator),
        batcher=Batcher.from_config(config, topology, _step_ends(config, tokenizer, family.vocab)),
        reduce=OverRanks(topology.data),
        clock=reporter.clock,
        reporter=reporter,
    )


def build_reporter(
    config: TrainConfig, topology: Topology, tokenizer: Tokenizer, generator: Generator, family: FamilyConfig
) -> Reporter:
    """The run's voice: logs, evaluation, samples."""
    output = Path(config.run.output_dir)
    log = open_metrics_log(
        output,
        config.log,
        rank=topology.rank,
        name=config.run.name,
        num_steps=config.run.steps,
        columns=TRAIN_COLUMNS,
        run_config=config.model_dump(mode="json"),
    )
    return Reporter(
        config=config,
        topology=topology,
        plan=plan_step(config),
        family=family,
        evaluator=_evaluator(config, tokenizer, generator, log),
        clock=Clock(device.synchronize, log.stage),
        log=log,
        samples=open_samples_log(output, config.log, rank=topology.rank),
        recorder=Recorder(config.rollout.record if topology.rank == 0 else None),
    )


def build_roles(config: TrainConfig, topology: Topology, plan: StepPlan) -> Roles:
    """Load the models that the plan needs, each once."""
    policy_folder = _folder(config.models.policy.path)
    prm_folder = config.models.prm.path or policy_folder
    reference_folder = config.models.reference or prm_folder

    def role(name: str, folder: str, optimizer: OptimizerConfig | None, updates: int) -> Role:
        return Role(
            name,
            folder,
            topology,
            config.parallel,
            dtype=DTYPES[config.models.dtype],
            optimizer=optimizer,
            total_updates=updates,
            logprob_impl=config.models.logprob_impl,
        )

    policy, prm = config.models.policy, config.models.prm
    frozen: dict[str, Role] = {}
    if plan.reference:
        frozen[reference_folder] = role("reference", reference_folder, None, 1)
    if plan.policy_reference and policy_folder not in frozen:
        frozen[policy_folder] = role("policy_reference", policy_folder, None, 1)
    return Roles(
        policy=role("policy", policy_folder, policy.optimizer, config.run.steps * policy.num_mini_batches),
        prm=role("prm", prm_folder, prm.optimizer, config.run.steps * prm.num_mini_batches) if plan.prm else None,
        reference=frozen[reference_folder] if plan.reference else None,
        policy_reference=frozen[policy_folder] if plan.policy_reference else None,
    )


def build_engine(config: TrainConfig, topology: Topology, tokenizer: Tokenizer) -> Engine:
    """This rank's replica of the configured engine (the recording's place for evaluation is an embedded one)."""
    dtype = DTYPES[config.rollout.dtype or config.models.dtype]
    match config.rollout.engine:
        case "embedded" | "replay":
            return EmbeddedEngine(
                _folder(config.models.policy.path),
                end_token_ids=tokenizer.eos_token_ids,
                device=device.current_device(),
                dtype=dtype,
                max_concurrent=config.rollout.max_concurrent,
                replica=topology.rank,
                num_replicas=topology.sizes.world,
                trust_remote_code=config.models.trust_remote_code,
            )
        case other:
            raise InputError(f"rollout.engine: {other} is not available yet; use embedded")


def build_sync(config: TrainConfig, topology: Topology, policy: Role, engine: Engine) -> WeightSync:
    """The path of the policy's weights into this rank's engine."""
    # Experts are spread over data-parallel ranks too, so only the whole world holds a whole mixture of experts.
    group = dist.group.WORLD if topology.sizes.expert > 1 else topology.model
    ranks = dist.get_process_group_ranks(group)
    sources = [policy.pieces(rank) for rank in ranks]
    itemsize = DTYPES[config.models.dtype].itemsize
    transport = LocalSync(
        sources,
        whole_tensors(piece for pieces in sources for piece in pieces),
        group=group if len(ranks) > 1 else None,
        me=ranks.index(topology.rank),
        bucket_bytes=config.rollout.bucket_bytes,
        itemsize=itemsize,
    )
    return WeightSync(engine, transport, policy.params, config.rollout.check_every)


def _speaks(config: TrainConfig, topology: Topology) -> bool:
    """One rank of each engine replica reports its answers."""
    return topology.rank % config.rollout.tensor == 0


def _collector(config: TrainConfig, prompts: PromptStream, generator: Generator) -> Collector | ReplayCollector:
    if config.rollout.engine == "replay":
        assert config.rollout.replay is not None
        return ReplayCollector(config.rollout.replay)
    return Collector(prompts, generator, config.rollout, config.run.seed)


def _evaluator(config: TrainConfig, tokenizer: Tokenizer, generator: Generator, log: MetricsLog) -> Evaluator:
    prompts, skipped = eval_prompts(
        read_prompt_rows(config.data.eval, config.data.system_prompt) if config.data.eval else [],
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_prompts=config.eval.max_prompts,
    )
    if skipped:
        log.warn(f"data.eval: {skipped} prompts are longer than {config.data.max_prompt_tokens} tokens and are skipped")
    return Evaluator(prompts, generator, config.eval, config.rollout.sampling, config.run.seed)


def _step_ends(config: TrainConfig, tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor | None:
    if config.prm.granularity is not Granularity.step:
        return None
    return tokenizer.step_end_table(config.prm.step_delimiter, vocab_size)


def _folder(path: str | None) -> str:
    if path is None:
        raise InputError("models.policy.path: is required; give the HF folder of the model to train")
    return path
