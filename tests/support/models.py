"""Tiny Hugging Face models, and a Megatron run of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3_tied": ("Llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 16}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    # Three groups: every even tensor size must pad them.
    "qwen3_odd": ("Qwen3", {"head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen2_odd": ("Qwen2", {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "mistral_window": ("Mistral", {"sliding_window": 5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen3_moe": ("Qwen3Moe", {**_MOE, "moe_intermediate_size": 24, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe_raw": ("Qwen3Moe", {**_MOE, "moe_intermediate_size": 24, "norm_topk_prob": False}),
    "mixtral": ("Mixtral", {**_MOE, "sliding_window": None}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_mlp_bias": ("Llama", {"mlp_bias": True}),
    "qwen3_bias": ("Qwen3", {"attention_bias": True, "head_dim": 16}),
    "qwen2_yarn": ("Qwen2", {"rope_parameters": _YARN_ROPE}),
    "qwen2_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
}
"""Test model -> transformers class prefix and config."""


def make_model(folder: Path, name: str, *, max_shard_size: str = "5GB", **changes: Any) -> Any:
    """Writes a random model of a family in Hugging Face format, and returns it."""
    import transformers

    prefix, config = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**{**_SIZES, **config, **changes})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    for param_name, param in model.named_parameters():
        # Large enough for attention, routing and norms to matter; norms around 1.
        torch.nn.init.normal_(param, mean=1.0 if "norm" in param_name else 0.0, std=0.08)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def sequences(lengths: Sequence[int], vocab: int = 101) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocab, (length,), generator=generator) for length in lengths]


def reference_logits(model: Any, seqs: Sequence[Tensor]) -> Tensor:
    """transformers' logits of each sequence alone, [T, V]."""
    with torch.no_grad():
        return torch.cat([model(seq[None]).logits[0] for seq in seqs])


def start(parallel: dict[str, Any], folder: Path | str, *, ddp: Any = False, dtype: str = "float32", **build: Any):
    """(topology, chunks) of a model folder on this rank; ddp: True, or options of Megatron's wrapper."""
    from prime_megatron.config.model import ParallelConfig
    from prime_megatron.families.read import read_config
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.mcore.model import build_model
    from prime_megatron.mcore.weights import load_hf

    config = ParallelConfig.model_validate_json(json.dumps(parallel))
    topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
    options = None if isinstance(ddp, bool) else ddp
    family = read_config(folder, value_head=bool(build.get("value_head")))
    precision = getattr(torch, dtype)
    chunks = build_model(family, topology, config, precision, wrap_ddp=bool(ddp), ddp=options, **build)
    load_hf(chunks, folder, topology)
    return topology, chunks


def restart() -> None:
    """Takes down Megatron's groups, so that the same processes can be laid out anew. Each has threads of its own, and
    thousands of them are slow; an engine's groups, not described in capitals, stay."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group.group_desc.isupper():
            dist.destroy_process_group(group)


def pack(seqs: Sequence[Tensor], topology: Any, *, sequence_parallel: bool) -> tuple[Any, ...]:
    """(tokens [1, P], index of each token in the sequences or -1 [P], Packed, its position in its own [1, P]) of this
    context rank: every sequence is padded to 2 x context chunks of which rank r holds r and 2 x context - 1 - r; the
    last one is padded further so that the tensor size divides the local length."""
    from prime_megatron.mcore.packed import Packed

    context, rank = topology.sizes.context, topology.at.context
    unit = 2 * context if context > 1 else 1
    lengths = [len(seq) for seq in seqs]
    padded = [-(-length // unit) * unit for length in lengths]
    padded[-1] += -sum(padded) % (unit * topology.sizes.tensor if sequence_parallel else unit)
    sources, positions, begin = [], [], 0
    for length, size in zip(lengths, padded, strict=True):
        source = torch.arange(begin, begin + size)
        position = source - begin
        source[length:] = -1
        for whole, parts in ((source, sources), (position, positions)):
            chunks = whole.chunk(2 * context)
            parts.append(torch.cat((chunks[rank], chunks[2 * context - 1 - rank])) if context > 1 else whole)
        begin += length
    source = torch.cat(sources)
    tokens = torch.cat((*seqs, torch.zeros(1, dtype=torch.int64)))[source]
    cu = torch.tensor([0, *torch.tensor(padded).cumsum(0).tolist()], dtype=torch.int32)
    packed = Packed("thd", cu, cu, cu, cu, max(padded), max(padded), lengths=tuple(padded))
    return tokens[None], source, packed, torch.cat(positions)[None]


def run(chunks: Sequence[Any], micro: Sequence[tuple[Any, ...]], loss: Any, *, train: bool) -> list[Any]:
    """Megatron's schedule over the micro-batches; loss(index, hidden, model) -> (loss, result)."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(iterator: Any, model: Any) -> Any:
        index, (tokens, _, packed, positions) = next(iterator)
        hidden = model(tokens, positions, None, packed_seq_params=packed)

        def wrapped(hidden: Tensor) -> Any:
            value, result = loss(index, hidden, model)
            return value, torch.zeros((), dtype=torch.int), result

        return hidden, wrapped

    iterators = [iter(list(enumerate(micro))) for _ in chunks]
    many = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if many else iterators[0],
        model=list(chunks) if many else chunks[0],
        num_microbatches=len(micro),
        seq_length=1,
        micro_batch_size=1,
        forward_only=not train,
    )


def logits(chunks: Sequence[Any], topology: Any, batches: Sequence[Sequence[Tensor]]) -> Tensor | None:
    """Logits [T, V] of all the batches' tokens in order (a micro-batch each), whole on every last-stage rank."""
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    from prime_megatron.mcore.model import unwrap

    config = unwrap(chunks[0]).config
    micro = [pack(seqs, topology, sequence_parallel=config.sequence_parallel) for seqs in batches]

    def score(index: int, hidden: Tensor, model: Any) -> Any:
        if config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        part = (hidden[:, 0] @ unwrap(model).head_weight().T).contiguous()
        parts = [torch.empty_like(part) for _ in range(topology.sizes.tensor)]
        dist.all_gather(parts, part, group=topology.tensor)
        source = micro[index][1]
        whole = torch.zeros(sum(len(seq) for seq in batches[index]), unwrap(model).family.vocab)
        whole[source[source >= 0]] = torch.cat(parts, -1)[source >= 0, : whole.shape[1]]
        dist.all_reduce(whole, group=topology.context)
        return hidden.sum(), whole

    with torch.no_grad():
        results = run(chunks, micro, score, train=False)
    return torch.cat(results) if results else None
