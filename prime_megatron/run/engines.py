"""From a config to this rank's engine and to what brings the policy's weights into it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig

from prime_megatron import device
from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.families.check import compare_facts, facts_of, rotary_facts
from prime_megatron.families.engine_layout import (
    SGLANG_EXPERTS,
    VLLM_EXPERTS,
    fused_pieces,
    fused_shapes,
    module_pieces,
)
from prime_megatron.families.read import read_config
from prime_megatron.mcore.role import Role
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.embedded.engine import EmbeddedEngine
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.place import engine_environment
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.rollout.vllm.in_process import InProcessEngine
from prime_megatron.run.context import SPARE_TOKENS
from prime_megatron.run.models import DTYPES
from prime_megatron.run.transport import is_in_process, transport_of
from prime_megatron.weights.by_bucket import BucketReshard
from prime_megatron.weights.folder import WeightFolder
from prime_megatron.weights.in_place import InPlaceReshard
from prime_megatron.weights.manifest import Manifest
from prime_megatron.weights.plan import hold, plan_block
from prime_megatron.weights.sync import Reshard, WeightSync
from prime_megatron.weights.transports import (
    BroadcastTransport,
    BucketTransport,
    DiskTransport,
    LiveTransport,
    Transport,
)


def build_engine(config: TrainConfig, topology: Topology, end_token_ids: Sequence[int], *, longest: int = 0) -> Engine:
    """This rank's replica of the configured engine (a replay's evaluations run on an embedded one). Collective.

    longest: tokens of the longest prompt and response of eval.suite.

    Raises:
        InputError: an engine that is not installed, or that cannot be laid out as asked.
        RunError: an engine that does not start.
    """
    if config.rollout.engine in ("embedded", "replay"):
        folder = policy_folder_of(config)
        family = read_config(folder)
        engine = EmbeddedEngine(
            folder,
            end_token_ids=end_token_ids,
            device=device.current_device(),
            dtype=_engine_dtype(config),
            max_concurrent=config.rollout.max_concurrent,
            replica=topology.rank,
            num_replicas=topology.sizes.world,
            trust_remote_code=config.models.trust_remote_code,
            corrections=family.corrections,
        )
        facts = facts_of(engine.model.config) | rotary_facts(engine.model.base_model.rotary_emb)
        compare_facts(family, facts, f"{folder}/config.json", "the embedded engine")
        return engine
    rollout = config.rollout
    settings = driver_settings(config, end_token_ids, longest=longest)
    if settings.in_process:
        member = _member(rollout.tensor, topology, config.parallel.timeout_s)
        return InProcessEngine(member, settings, transport_of(config) == "live", _manifest(config))
    tries = rollout.max_restarts + 1
    member = _member(rollout.tensor, topology, tries * (rollout.start_timeout_s + rollout.generate_timeout_s))
    log_path = Path(config.run.output_dir) / f"engine-{member.replica}.log"
    env = engine_environment(rollout.tensor, topology.rank)
    return ProcessEngine(
        member,
        settings,
        engine_limits(config),
        lambda: EngineProcess(rollout.engine, settings.now(), env, log_path),
        _transport(config) if member.tensor_rank == 0 else None,
    )


def build_sync(config: TrainConfig, topology: Topology, policy: Role, engine: Engine) -> WeightSync:
    """What brings the policy's weights into this rank's engine."""
    # Experts are spread over data-parallel ranks too, so only the whole world holds a whole mixture of experts.
    block = dist.group.WORLD if topology.sizes.expert * topology.sizes.expert_tensor > 1 else topology.model
    ranks = dist.get_process_group_ranks(block)
    sources = [policy.pieces(rank) for rank in ranks]
    group, me = block if len(ranks) > 1 else None, ranks.index(topology.rank)
    rollout = config.rollout
    reshard: Reshard
    targets = engine.named_targets()
    if targets is None:
        everyone = is_in_process(config)  # each of its ranks loads for itself; elsewhere the replica's first sends
        reshard = BucketReshard(
            sources,
            [position for position, rank in enumerate(ranks) if everyone or rank % rollout.tensor == 0],
            group=group,
            me=me,
            bucket_bytes=rollout.bucket_bytes,
            dtype=_engine_dtype(config),
        )
    else:
        if rollout.engine in ("sglang", "vllm"):
            check_shapes(config, policy.family, targets)
            layout = layout_of(config, policy.family)
            wants = [layout[rank % rollout.tensor] for rank in ranks]
        else:
            wants = [_module(policy, engine, sources)] * len(ranks)
        dtypes = (DTYPES[config.models.dtype], _engine_dtype(config))
        reshard = InPlaceReshard(
            plan_block(hold(sources), wants),
            group=group,
            me=me,
            bucket_bytes=rollout.bucket_bytes,
            dtype=min(dtypes, key=lambda dtype: dtype.itemsize),
        )
    return WeightSync(engine, reshard, policy.params, rollout.check_every)


def check_shapes(config: TrainConfig, family: FamilyConfig, targets: Mapping[str, Tensor]) -> None:
    """Raise InputError where the engine's live tensors have other names or shapes than its layout: on a CPU SGLang pads
    heads and ffn columns that its ranks do not share evenly, and pieces written past the padding would be right bits
    in wrong places."""
    rollout = config.rollout
    shapes = fused_shapes(family, rollout.tensor, experts_module=experts_module(config), expert_size=rollout.expert)
    held = {name: tuple(target.shape) for name, target in targets.items()}
    for name in sorted(held.keys() | shapes.keys()):
        if held.get(name) != shapes.get(name):
            raise InputError(
                f"rollout.transport: live does not fit: {rollout.engine} at rollout.tensor {rollout.tensor} has {name} "
                f"as {list(held.get(name, ()))}, expected {list(shapes.get(name, ()))}; set rollout.tensor to another "
                "size, or at size 1 rollout.transport to bucket"
            )


def _module(policy: Role, engine: Engine, sources: Sequence[Sequence[ShardSlice]]) -> list[ShardSlice]:
    """What the embedded engine's model holds."""
    pieces = module_pieces(policy.family, (piece for rank in sources for piece in rank))
    lacking = {piece.param for piece in pieces} - (engine.named_targets() or {}).keys()
    if lacking:
        raise InputError(
            f"{policy.folder}: transformers' model has no weight {min(lacking)}; install a transformers of the "
            "requirements, or set rollout.engine to sglang or vllm"
        )
    return pieces


def _engine_dtype(config: TrainConfig) -> torch.dtype:
    return DTYPES[config.rollout.dtype or config.models.dtype]


def engine_limits(config: TrainConfig) -> Limits:
    """How long an engine in a process of its own may take, and how often it is started again."""
    rollout = config.rollout
    return Limits(rollout.max_restarts, rollout.generate_timeout_s, rollout.alive_timeout_s, rollout.start_timeout_s)


def driver_settings(config: TrainConfig, end_token_ids: Sequence[int], *, longest: int = 0) -> DriverSettings:
    """What the engine is started with; ``longest`` as in `build_engine`."""
    rollout = config.rollout
    own = rollout.sglang if rollout.engine == "sglang" else rollout.vllm
    folder = policy_folder_of(config)
    model = AutoConfig.from_pretrained(folder, trust_remote_code=config.models.trust_remote_code)
    wanted = max(longest, config.data.max_prompt_tokens + rollout.sampling.max_response_tokens)
    return DriverSettings(
        model_path=folder,
        device=device.current_device().type,
        dtype=rollout.dtype or config.models.dtype,
        tensor=rollout.tensor,
        expert=rollout.expert,
        max_tokens=min(wanted, model.max_position_embeddings - SPARE_TOKENS[rollout.engine]),
        max_concurrent=rollout.max_concurrent,
        end_token_ids=tuple(end_token_ids),
        seed=config.run.seed,
        trust_remote_code=config.models.trust_remote_code,
        memory_fraction=own.memory_fraction,
        cpu_cache_bytes=own.cpu_cache_bytes,
        can_sleep=device.on_gpu(),
        server=rollout.engine == "sglang" and rollout.sglang.server,
        in_process=is_in_process(config),
        start_timeout_s=rollout.start_timeout_s,
        extra=own.extra,
    )


def _member(tensor: int, topology: Topology, timeout_s: float) -> Member:
    """Replicas are neighbouring ranks; making their groups is collective over the world.

    timeout_s: longest that a rank waits for its leader, who may have to start the engine again.
    """
    rank, world = topology.rank, topology.sizes.world
    mine = None
    if tensor > 1:
        for first in range(0, world, tensor):
            ranks = list(range(first, first + tensor))
            group = dist.new_group(ranks, backend="gloo", timeout=timedelta(seconds=timeout_s))
            if first <= rank < first + tensor:
                mine = group
    return Member(rank // tensor, world // tensor, rank % tensor, rank - rank % tensor, mine)


def _transport(config: TrainConfig) -> Transport:
    rollout = config.rollout
    transport = transport_of(config)
    if transport == "live":
        return LiveTransport(rollout.tensor, rollout.start_timeout_s)
    layout = layout_of(config, read_config(policy_folder_of(config)))
    how = (layout, _engine_dtype(config), rollout.check_every, rollout.start_timeout_s)
    if transport == "bucket":
        return BucketTransport(*how)
    if transport == "broadcast":
        return BroadcastTransport(*how)
    # The run's own folder is one that the engine can read.
    where = Path(config.run.output_dir)
    where.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="prime-engine-", dir=where))
    return DiskTransport(*how, WeightFolder(folder, policy_folder_of(config)))


def _manifest(config: TrainConfig) -> Manifest:
    layout = layout_of(config, read_config(policy_folder_of(config)))
    return Manifest(layout, _engine_dtype(config), config.rollout.check_every)


def layout_of(config: TrainConfig, family: FamilyConfig) -> list[list[ShardSlice]]:
    """What each tensor-parallel rank of the engine holds."""
    module = experts_module(config)
    tensor, expert = config.rollout.tensor, config.rollout.expert
    return [fused_pieces(family, tensor, rank, experts_module=module, expert_size=expert) for rank in range(tensor)]


def experts_module(config: TrainConfig) -> str:
    """Where the engine's layers keep their experts."""
    return VLLM_EXPERTS if config.rollout.engine == "vllm" else SGLANG_EXPERTS
