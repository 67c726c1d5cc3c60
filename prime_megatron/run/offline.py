"""An engine without a trainer: a model folder's weights, a generator, and a world of one process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from prime_megatron import device
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.errors import InputError, RunError
from prime_megatron.families.read import read_config
from prime_megatron.rollout.embedded.engine import EmbeddedEngine
from prime_megatron.rollout.engine import Engine
from prime_megatron.rollout.generate import Generator, Scorer
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.place import engine_environment
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.run.context import SPARE_TOKENS
from prime_megatron.types import Bucket
from prime_megatron.weights.transports import FolderTransport

EngineName = Literal["embedded", "sglang", "vllm"]
VERSION = 0
"""Policy version of a folder's weights."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAX_RESTARTS = 2
_TIMEOUT_S = 3600.0
_ALIVE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class OfflineModel:
    """What to generate with."""

    folder: str
    """HF model folder."""
    engine: EngineName = "embedded"
    dtype: str = "float32"
    """"float32" or "bfloat16"."""
    tensor: int = 1
    """Tensor-parallel size (sglang, vllm)."""
    max_concurrent: int = 256
    """Sequences that are decoded together."""
    trust_remote_code: bool = False
    memory_fraction: float = 0.85
    """Of the whole device's memory, for weights and KV cache (sglang, vllm on a GPU)."""
    cache_bytes: int = 2**30
    """KV cache (sglang, vllm on a CPU)."""


def load_offline_tokenizer(model: OfflineModel) -> Tokenizer:
    """The model's tokenizer. Raises InputError as ``load_tokenizer``."""
    return load_tokenizer(model.folder, trust_remote_code=model.trust_remote_code)


def context_of(model: OfflineModel) -> int:
    """Longest prompt and response that the model holds in its engine, in tokens. Raises InputError: no config."""
    return model_context(model.folder, model.engine, trust_remote_code=model.trust_remote_code)


def model_context(folder: str, engine: str, *, trust_remote_code: bool) -> int:
    """max_position_embeddings less what the engine keeps for itself. Raises InputError for a folder without it."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        positions = int(config.max_position_embeddings)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: no model config with max_position_embeddings ({_first(error)})") from None
    return positions - SPARE_TOKENS[engine]


@contextmanager
def offline_generator(
    model: OfflineModel, tokenizer: Tokenizer, scorer: Scorer, *, max_tokens: int, log: Path
) -> Iterator[Generator]:
    """A generator on an engine with the folder's weights; both end with the block.

    Args:
        scorer: takes the answers.
        max_tokens: longest prompt and response that will be asked.
        log: takes the output of an engine in a process of its own.

    Raises:
        InputError: a model that cannot be read, an engine that is not installed.
        RunError: an engine that does not start.
    """
    backend = device.backend_name()
    if backend == "nccl":
        device.bind_local_rank()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = _engine(model, tokenizer.eos_token_ids, max_tokens, log)
        try:
            yield Generator(engine, True, scorer, tokenizer, _lost)
        finally:
            engine.close()
    finally:
        dist.destroy_process_group()


def _engine(model: OfflineModel, end_token_ids: Sequence[int], max_tokens: int, log: Path) -> Engine:
    if model.engine == "embedded":
        return _embedded(model, end_token_ids)
    settings = DriverSettings(
        model_path=model.folder,
        device=device.current_device().type,
        dtype=model.dtype,
        tensor=model.tensor,
        max_tokens=max_tokens,
        max_concurrent=model.max_concurrent,
        end_token_ids=tuple(end_token_ids),
        seed=0,
        trust_remote_code=model.trust_remote_code,
        memory_fraction=model.memory_fraction,
        cpu_cache_bytes=model.cache_bytes,
        can_sleep=False,
    )
    env = engine_environment(model.tensor, 0)
    engine = ProcessEngine(
        Member(replica=0, num_replicas=1, tensor_rank=0, leader=0, group=None),
        settings,
        Limits(_MAX_RESTARTS, _TIMEOUT_S, _ALIVE_TIMEOUT_S, _TIMEOUT_S),
        lambda: EngineProcess(model.engine, settings.now(), env, log),
        FolderTransport(model.folder, _TIMEOUT_S),
    )
    engine.update_weights((), VERSION)
    return engine


def _embedded(model: OfflineModel, end_token_ids: Sequence[int]) -> EmbeddedEngine:
    dtype = _DTYPES[model.dtype]
    engine = EmbeddedEngine(
        model.folder,
        end_token_ids=end_token_ids,
        device=device.current_device(),
        dtype=dtype,
        max_concurrent=model.max_concurrent,
        trust_remote_code=model.trust_remote_code,
        corrections=read_config(model.folder).corrections,
    )
    engine.update_weights([_weights(model, dtype)], VERSION)
    gc.collect()  # the loaded model, whose tensors the engine has copied
    return engine


def _weights(model: OfflineModel, dtype: torch.dtype) -> Bucket:
    """All weights by the names of transformers' module, as it reads the folder."""
    hf_logging.disable_progress_bar()
    try:
        loaded, notes = AutoModelForCausalLM.from_pretrained(
            model.folder,
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise whatever the damage leads to
        raise InputError(f"{model.folder}: the weights cannot be read ({_first(error)})") from None
    missing = sorted(notes["missing_keys"])
    if missing or notes["mismatched_keys"]:
        named = missing[0] if missing else str(sorted(notes["mismatched_keys"])[0])
        raise InputError(f"{model.folder}: the weights are not those of config.json, {named} is missing or another")
    named_parameters = dict(loaded.named_parameters())
    return Bucket(list(named_parameters), list(named_parameters.values()), VERSION)


def _lost() -> None:
    raise RunError("the engine lost its weights, which a folder of a model cannot do")


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
