"""The common way of a weight sync, step by step as trainers do it: gather every shard, concatenate, convert to Hugging
Face tensors, flatten into buckets, load with the engine's split-aware loader. For a dense, unsplit engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tools.benches.reshard_work.shapes import Shape

Params = Mapping[tuple[int, str], Tensor]
COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
WHOLE = ("layernorm.weight",)


@torch.no_grad()
def run(shape: Shape, params: Params, targets: Mapping[str, Tensor], bucket_bytes: int) -> None:
    """From training shards by (rank, Megatron name) to the engine's tensors."""
    converted = dict(pair for name, full in _gathered(params) for pair in _converted(shape, name, full))
    for names, shapes, flat in _buckets(converted, bucket_bytes):
        _load(shape, names, shapes, flat, targets)


def _gathered(params: Params) -> Iterator[tuple[str, Tensor]]:
    """Every parameter whole: what an all-gather leaves in its output buffers, concatenated."""
    ranks = 1 + max(rank for rank, _ in params)
    for rank, name in params:
        if rank:
            continue
        shards = [torch.empty_like(params[r, name]).copy_(params[r, name]) for r in range(ranks)]
        if name.endswith(WHOLE):
            yield name, shards[0]
        elif name.endswith("linear_fc1.weight"):
            halves = [shard.chunk(2) for shard in shards]
            yield name, torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        else:
            yield name, torch.cat(shards, dim=1 if name.endswith(COLUMNS) else 0)


def _converted(shape: Shape, name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face tensors of one Megatron parameter."""
    outer = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
    }
    if name in outer:
        yield outer[name], full
        return
    _, _, layer, tail = name.split(".", 3)
    at = f"model.layers.{layer}."
    if "linear_qkv" in tail:
        kind = tail.rsplit(".", 1)[1]
        heads = shape.heads // shape.kv_heads
        groups = full.view(shape.kv_heads, (heads + 2) * shape.head_dim, -1)
        parts = groups.split([heads * shape.head_dim, shape.head_dim, shape.head_dim], dim=1)
        for which, part in zip("qkv", parts, strict=True):
            rest = full.shape[1:]
            yield f"{at}self_attn.{which}_proj.{kind}", part.reshape(-1, *rest).contiguous()
    elif "linear_fc1" in tail:
        gate, up = full.chunk(2)
        yield f"{at}mlp.gate_proj.weight", gate
        yield f"{at}mlp.up_proj.weight", up
    else:
        names = {
            "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
            "mlp.linear_fc2.weight": "mlp.down_proj.weight",
            "input_layernorm.weight": "input_layernorm.weight",
            "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        }
        yield at + names[tail], full


def _buckets(tensors: Mapping[str, Tensor], limit: int) -> Iterator[tuple[list[str], list[torch.Size], Tensor]]:
    """Names, shapes and one flat tensor at a time."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if names and size + nbytes > limit:
            yield names, [tensors[n].shape for n in names], torch.cat([tensors[n].flatten() for n in names])
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names, [tensors[n].shape for n in names], torch.cat([tensors[n].flatten() for n in names])


def _load(
    shape: Shape, names: list[str], shapes: list[torch.Size], flat: Tensor, targets: Mapping[str, Tensor]
) -> None:
    """Each tensor into its place in the engine's fused parameter."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    fused = {
        "q_proj": ("qkv_proj", 0),
        "k_proj": ("qkv_proj", q),
        "v_proj": ("qkv_proj", q + kv),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", shape.ffn),
    }
    offset = 0
    for name, size in zip(names, shapes, strict=True):
        tensor = flat[offset : offset + size.numel()].view(size)
        offset += size.numel()
        module = name.split(".")[-2]
        target, start = fused.get(module, (module, 0))
        targets[name.replace(module, target)][start : start + size[0]].copy_(tensor)
