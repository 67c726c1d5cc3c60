"""What a run would refuse about its model folders, told without a GPU and without weights."""

from __future__ import annotations

import contextlib
from pathlib import Path

from prime_megatron.config import ParallelConfig, StageConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.config.check_stage import stage_folders
from prime_megatron.config.model import Layers
from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.step.plan import plan_step


def check_models(config: TrainConfig | StageConfig, world_size: int) -> None:
    """Read every model folder that is there as the run will, and compare with transformers' reading.

    Weights and tokenizer are looked at where the folder has them. Imports torch, which takes seconds.

    Raises:
        InputError: one line with the folder, the key or the tensor.
    """
    supervised = isinstance(config, StageConfig)
    trust = config.trust_remote_code if supervised else config.models.trust_remote_code
    for folder, value_head in _folders(config):
        if Path(folder).is_dir():
            check_folder(folder, config.parallel, world_size, value_head=value_head, trust_remote_code=trust)
    policy = config.model if supervised else policy_folder_of(config)
    if Path(policy).is_dir():
        _check_template(config, policy, trust_remote_code=trust)
    if not supervised:
        _check_kernels(config)
        if Path(policy).is_dir():
            _check_engine(config, policy)


def compare_models(config: TrainConfig | StageConfig) -> None:
    """The comparison and the engine alone, at a run's start. Raises InputError as ``check_models``."""
    from prime_megatron.families.check import check_against_transformers

    trust = config.trust_remote_code if isinstance(config, StageConfig) else config.models.trust_remote_code
    for folder, value_head in _folders(config):
        family = read_config(folder, value_head=value_head)
        check_against_transformers(family, folder, trust_remote_code=trust)
    if isinstance(config, TrainConfig):
        _check_engine(config, policy_folder_of(config))


def _folders(config: TrainConfig | StageConfig) -> list[tuple[str, bool]]:
    """(folder, whether it gets a head of one value) of every model that the run has, each once."""
    if isinstance(config, StageConfig):
        return [(folder, False) for folder in stage_folders(config)]
    return list(dict.fromkeys((model.folder, model.value_head) for model in plan_step(config).models))


def check_folder(
    folder: str, parallel: ParallelConfig, world_size: int, *, value_head: bool, trust_remote_code: bool
) -> None:
    """One model folder, without its weights' values. Raises InputError as `check_models`."""
    family = read_config(folder, value_head=value_head)

    from prime_megatron.data.tokenizer import VOCABULARY_FILES, load_tokenizer
    from prime_megatron.families.check import check_against_transformers
    from prime_megatron.families.folder import INDEX, SINGLE, HfFolder
    from prime_megatron.families.megatron_layout import check_layout
    from prime_megatron.parallel.topology import ParallelSizes

    check_layout(family, parallel, ParallelSizes.from_config(parallel, world_size))
    check_against_transformers(family, folder, trust_remote_code=trust_remote_code)
    has = {name for name in (*VOCABULARY_FILES, INDEX, SINGLE) if (Path(folder) / name).exists()}
    if has & {INDEX, SINGLE}:
        with HfFolder(folder, family) as source:
            source.check(value_head=value_head)
    if has & set(VOCABULARY_FILES) and not value_head:
        load_tokenizer(folder, family.vocab, trust_remote_code=trust_remote_code)


def _check_template(config: TrainConfig | StageConfig, folder: str, *, trust_remote_code: bool) -> None:
    """A chat goes through the template, where the folder has a tokenizer."""
    from prime_megatron.data.chat import ChatOptions
    from prime_megatron.data.messages import Message
    from prime_megatron.data.tokenizer import VOCABULARY_FILES, OpenThought, load_tokenizer

    if not any((Path(folder) / name).is_file() for name in VOCABULARY_FILES):
        return
    options = ChatOptions(*config.data.template_options())
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, options=options)
    question = Message("user", "1 + 1 = ?")
    if isinstance(config, StageConfig):
        with contextlib.suppress(OpenThought):  # rows may have a thought where this one has none
            tokenizer.encode_answer((question, Message("assistant", "2")))
        return
    system = config.data.system_prompt
    before = () if system is None else (Message("system", system),)
    _, ids = tokenizer.encode_chat((*before, question))
    if not ids:
        raise InputError(f"{folder}: the chat template makes nothing of a question; correct chat_template.jinja")


def _check_kernels(config: TrainConfig) -> None:
    """A config for GPUs is checked where there is none, too: launch.device_memory says that it is one."""
    if config.models.logprob_impl == "triton" and config.launch.device_memory is None:
        from prime_megatron.device import on_gpu

        if not on_gpu():
            raise InputError(
                "models.logprob_impl: triton needs a GPU, and there is none here; set it to auto, or "
                "launch.device_memory where the run has one"
            )
    if config.models.layers is Layers.te and config.launch.device_memory is None:
        from prime_megatron.mcore.spec import takes_te

        takes_te(config.models.layers)


def _check_engine(config: TrainConfig, folder: str) -> None:
    """An engine of several ranks splits the model in its own way, and may lack a part of it."""
    if config.rollout.engine in ("sglang", "vllm"):
        from prime_megatron.families.engine_layout import check_engine

        family = read_config(folder)
        check_engine(family, config.rollout.tensor, config.rollout.expert)
        if family.mlp_bias and config.rollout.engine == "sglang":
            raise InputError(
                f"rollout.engine: sglang has no biases in the feed-forward, and {folder}/config.json has them "
                "(mlp_bias); set the key to vllm or embedded"
            )
        _check_windows(config, family, folder)


def _check_windows(config: TrainConfig, family: FamilyConfig, folder: str) -> None:
    """SGLang has no window in these families' layers, vLLM one for all layers; a window that holds every sequence does
    not matter."""
    engine, longest = config.rollout.engine, config.data.max_prompt_tokens + config.rollout.sampling.max_response_tokens
    if family.window is None or family.window >= longest or (engine == "vllm" and not family.full_layers):
        return
    has, instead = ("no attention windows", "vllm or embedded")
    if family.full_layers:
        has, instead = ("no attention windows in some of the layers", "embedded")
    raise InputError(
        f"rollout.engine: {engine} has {has} for {family.architecture}, and {folder}/config.json has them, of "
        f"{family.window} tokens, which data.max_prompt_tokens and rollout.sampling.max_response_tokens exceed "
        f"({longest}); set the key to {instead}"
    )
