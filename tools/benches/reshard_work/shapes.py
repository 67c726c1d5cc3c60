"""Model shapes, and Megatron's layout of them, without Megatron."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from prime_megatron.parallel.layers import layer_ranges
from prime_megatron.parallel.shards import Region, ShardSlice


@dataclasses.dataclass(frozen=True)
class Shape:
    """A dense Qwen2 (see reshard.layouts.Sizes)."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    head_dim: int = 128
    architecture: str = "Qwen2ForCausalLM"
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    expert_ffn: int = 0


SHAPES = {
    "small": Shape(hidden=896, ffn=4864, layers=5, heads=14, kv_heads=2, vocab=32000, tied=True, head_dim=64),
    "7b": Shape(hidden=3584, ffn=18944, layers=28, heads=28, kv_heads=4, vocab=152064, tied=False),
    "72b": Shape(hidden=8192, ffn=29568, layers=80, heads=64, kv_heads=8, vocab=152064, tied=False),
}


def megatron_pieces(shape: Shape, tensor: int, pipeline: int, rank: int, stage: int) -> Iterator[ShardSlice]:
    """What tensor-parallel rank ``rank`` of a pipeline stage holds; sizes must divide evenly."""
    assert shape.kv_heads % tensor == 0 and shape.vocab % tensor == 0 and shape.ffn % tensor == 0
    if stage == 0:
        yield _rows(shape, "embedding.word_embeddings.weight", "model.embed_tokens.weight", tensor, rank)
    for local, layer in enumerate(layer_ranges(shape.layers, pipeline, 1, None)[stage][0]):
        yield from _layer(shape, f"decoder.layers.{local}.", f"model.layers.{layer}.", tensor, rank)
    if stage == pipeline - 1:
        yield _vector("decoder.final_layernorm.weight", "model.norm.weight", shape.hidden)
        if not shape.tied:
            yield _rows(shape, "output_layer.weight", "lm_head.weight", tensor, rank)
        elif pipeline > 1:
            yield _rows(shape, "output_layer.weight", "model.embed_tokens.weight", tensor, rank)


def _layer(shape: Shape, param: str, name: str, tensor: int, rank: int) -> Iterator[ShardSlice]:
    """One layer: q, k, v interleaved by key-value group, gate over up, the outputs by columns."""
    yield _vector(f"{param}input_layernorm.weight", f"{name}input_layernorm.weight", shape.hidden)
    yield _vector(f"{param}pre_mlp_layernorm.weight", f"{name}post_attention_layernorm.weight", shape.hidden)
    groups = shape.kv_heads // tensor
    lengths = (shape.heads // shape.kv_heads * shape.head_dim, shape.head_dim, shape.head_dim)
    for kind in ("weight", "bias"):
        place = 0
        for group in range(rank * groups, (rank + 1) * groups):
            for which, length in zip("qkv", lengths, strict=True):
                rest: Region = ((0, shape.hidden),) if kind == "weight" else ()
                rows = (group * length, (group + 1) * length)
                whole = (length * shape.kv_heads, *(stop for _, stop in rest))
                target, hf = f"{param}self_attention.linear_qkv.{kind}", f"{name}self_attn.{which}_proj.{kind}"
                yield ShardSlice(target, 0, ((place, place + length), *rest), hf, (rows, *rest), whole)
                place += length
    rows = shape.ffn // tensor
    for index, which in enumerate(("gate", "up")):
        local: Region = ((index * rows, (index + 1) * rows), (0, shape.hidden))
        box: Region = ((rank * rows, (rank + 1) * rows), (0, shape.hidden))
        hf = f"{name}mlp.{which}_proj.weight"
        yield ShardSlice(f"{param}mlp.linear_fc1.weight", 0, local, hf, box, (shape.ffn, shape.hidden))
    outputs = (
        ("self_attention.linear_proj.weight", "self_attn.o_proj.weight", shape.heads * shape.head_dim),
        ("mlp.linear_fc2.weight", "mlp.down_proj.weight", shape.ffn),
    )
    for target, hf, width in outputs:
        columns = (rank * width // tensor, (rank + 1) * width // tensor)
        local = ((0, shape.hidden), (0, width // tensor))
        yield ShardSlice(param + target, 0, local, name + hf, ((0, shape.hidden), columns), (shape.hidden, width))


def _rows(shape: Shape, param: str, name: str, tensor: int, rank: int) -> ShardSlice:
    rows = shape.vocab // tensor
    box: Region = ((rank * rows, (rank + 1) * rows), (0, shape.hidden))
    return ShardSlice(param, 0, ((0, rows), (0, shape.hidden)), name, box, (shape.vocab, shape.hidden))


def _vector(param: str, name: str, size: int) -> ShardSlice:
    return ShardSlice(param, 0, ((0, size),), name, ((0, size),), (size,))
