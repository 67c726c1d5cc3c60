"""The shard map against Megatron's layouts written out in numpy, for any sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.config.model import ParallelConfig
from prime_megatron.errors import InputError
from prime_megatron.families import FAMILIES, FamilyConfig
from prime_megatron.families.megatron_layout import check_layout, padded_groups, padded_vocab, shard_map
from prime_megatron.parallel.shards import as_slices
from prime_megatron.parallel.topology import ParallelSizes

BASE = FamilyConfig(
    family="qwen2",
    architecture="Qwen2ForCausalLM",
    hidden=6,
    ffn=16,
    layers=4,
    heads=8,
    kv_heads=2,
    head_dim=3,
    vocab=13,
    max_positions=64,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-6,
    tied=False,
    qkv_bias=True,
    qk_norm=False,
    window=None,
    experts=0,
    experts_per_token=0,
    expert_ffn=0,
    normalize_expert_weights=True,
)
MOE = dataclasses.replace(
    BASE,
    family="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    qkv_bias=False,
    qk_norm=True,
    experts=4,
    experts_per_token=2,
    expert_ffn=8,
)


def _tensors(config: FamilyConfig) -> dict[str, np.ndarray]:
    """Every Hugging Face tensor, each element with a value of its own."""
    whole = ParallelSizes(world=1)
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for piece in shard_map(config, whole, whole.coordinates(0)):
        if piece.hf_name not in tensors:
            size = int(np.prod(piece.hf_shape))
            tensors[piece.hf_name] = np.arange(start, start + size).reshape(piece.hf_shape)
            start += size
    return tensors


def _megatron(config: FamilyConfig, tensors: dict[str, np.ndarray], layer: int, tensor: int, rank: int):
    """A layer's Megatron parameters on one tensor-parallel rank, from the definition of each layout."""
    at = f"model.layers.{layer}."
    q, k, v = (tensors[f"{at}self_attn.{name}_proj.weight"] for name in "qkv")
    groups = zip(*(np.split(x, config.kv_heads) for x in (q, k, v)), strict=True)
    qkv = np.concatenate([np.concatenate(group) for group in groups])
    proj = tensors[f"{at}self_attn.o_proj.weight"]
    padding = padded_groups(config, tensor) - config.kv_heads
    qkv = np.pad(qkv, ((0, padding * len(qkv) // config.kv_heads), (0, 0)), constant_values=-1)
    proj = np.pad(proj, ((0, 0), (0, padding * proj.shape[1] // config.kv_heads)), constant_values=-1)
    made = {
        "self_attention.linear_qkv.weight": np.split(qkv, tensor)[rank],
        "self_attention.linear_proj.weight": np.split(proj, tensor, axis=1)[rank],
        "input_layernorm.weight": tensors[f"{at}input_layernorm.weight"],
        "pre_mlp_layernorm.weight": tensors[f"{at}post_attention_layernorm.weight"],
    }
    if not config.experts:
        gate, up = (np.split(tensors[f"{at}mlp.{name}_proj.weight"], tensor)[rank] for name in ("gate", "up"))
        made["mlp.linear_fc1.weight"] = np.concatenate((gate, up))
        made["mlp.linear_fc2.weight"] = np.split(tensors[f"{at}mlp.down_proj.weight"], tensor, axis=1)[rank]
    return made


@settings(max_examples=40, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 4]),
    virtual=st.sampled_from([1, 2]),
    layers=st.integers(8, 11),
    vocab=st.integers(5, 20),
    tied=st.booleans(),
    groups=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_against_numpy(
    tensor: int, pipeline: int, virtual: int, layers: int, vocab: int, tied: bool, groups: int
) -> None:
    config = dataclasses.replace(
        BASE, layers=layers, vocab=vocab, tied=tied, kv_heads=groups, heads=6 if groups == 3 else 8
    )
    virtual = virtual if pipeline > 1 else 1
    sizes = ParallelSizes(tensor * pipeline, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)
    tensors = _tensors(config)
    seen_layers = []
    for rank in range(sizes.world):
        at = sizes.coordinates(rank)
        params: dict[tuple[int, str], dict[tuple[int, ...], int]] = {}
        for piece in shard_map(config, sizes, at):
            part = tensors[piece.hf_name][as_slices(piece.hf)]
            assert part.shape == piece.shape
            cells = params.setdefault((piece.chunk, piece.param), {})
            for index in np.ndindex(*part.shape):
                place = tuple(low + i for (low, _), i in zip(piece.local, index, strict=True))
                assert place not in cells, "pieces overlap"
                cells[place] = int(part[index])
        _check_outer(config, sizes, at, params, tensors)
        for (chunk, name), cells in params.items():
            if not name.endswith("input_layernorm.weight"):
                continue
            prefix = name.removesuffix("input_layernorm.weight")
            layer = next(
                i for i in range(layers) if cells[(0,)] == tensors[f"model.layers.{i}.input_layernorm.weight"][0]
            )
            seen_layers.append((chunk, at.pipeline, int(prefix.split(".")[2]), layer))
            for suffix, expected in _megatron(config, tensors, layer, tensor, at.tensor).items():
                found = params.get((chunk, prefix + suffix), {})
                wanted = {index: int(expected[index]) for index in np.ndindex(*expected.shape)}
                assert found == {index: value for index, value in wanted.items() if value >= 0}, suffix
    # Layers run through chunk 0 of all stages, then chunk 1 of all stages, each once per tensor rank.
    order = [layer for _, _, _, layer in sorted(set(seen_layers))]
    assert order == list(range(layers))
    assert len(seen_layers) == layers * tensor


def _check_outer(config, sizes, at, params, tensors) -> None:
    per_rank = padded_vocab(config.vocab, sizes.tensor) // sizes.tensor
    rows = range(at.tensor * per_rank, min((at.tensor + 1) * per_rank, config.vocab))
    last = sizes.virtual_pipeline - 1
    names = {}
    if at.pipeline == 0:
        names[0, "embedding.word_embeddings.weight"] = "model.embed_tokens.weight"
    if at.pipeline == sizes.pipeline - 1 and not (config.tied and sizes.pipeline == 1):
        names[last, "output_layer.weight"] = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    for key, hf_name in names.items():
        expected = {
            (local, column): int(tensors[hf_name][row, column])
            for local, row in enumerate(rows)
            for column in range(config.hidden)
        }
        assert params.get(key, {}) == expected
    heads = {name for _, name in params if name in ("output_layer.weight", "embedding.word_embeddings.weight")}
    assert len(heads) <= len(names)


@pytest.mark.parametrize(("world", "sizes"), [(1, {}), (2, {"expert": 2}), (4, {"tensor": 4, "expert": 2})])
def test_experts_are_covered_once(world: int, sizes: dict[str, int]) -> None:
    layout = ParallelSizes(world, **sizes)
    tensors = _tensors(MOE)
    covered = {name: np.zeros(tensor.shape, dtype=int) for name, tensor in tensors.items() if ".experts." in name}
    for rank in range(world):
        at = layout.coordinates(rank)
        if at.expert_data:
            continue
        for piece in shard_map(MOE, layout, at):
            if piece.hf_name in covered:
                covered[piece.hf_name][as_slices(piece.hf)] += 1
                local = int(piece.param.split("local_experts.")[1].split(".")[0])
                expert = int(piece.hf_name.split("experts.")[1].split(".")[0])
                assert expert == at.expert * (4 // layout.expert) + local
    assert covered
    assert all((count == 1).all() for count in covered.values())


def test_experts_split_over_expert_tensor_ranks() -> None:
    layout = ParallelSizes(2, tensor=2, expert_tensor=2)
    pieces = [
        p for p in shard_map(MOE, layout, layout.coordinates(1)) if p.param.endswith("experts.0.linear_fc1.weight")
    ]
    assert [(p.hf_name.split(".")[-2], p.hf[0], p.local[0]) for p in pieces if ".layers.0." in p.hf_name] == [
        ("gate_proj", (4, 8), (0, 4)),
        ("up_proj", (4, 8), (4, 8)),
    ]


def test_transformer_engine_names() -> None:
    whole = ParallelSizes(world=1)
    dense = {p.param for p in shard_map(BASE, whole, whole.coordinates(0), transformer_engine=True)}
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in dense
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in dense
    assert "decoder.final_layernorm.weight" in dense
    moe = {p.param for p in shard_map(MOE, whole, whole.coordinates(0), transformer_engine=True)}
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in moe
    assert "decoder.layers.3.mlp.experts.linear_fc2.weight3" in moe
    assert not any("local_experts" in name for name in moe)


@pytest.mark.parametrize(
    ("heads", "groups", "tensor", "padded"),
    [(8, 2, 2, 2), (8, 2, 4, 2), (9, 3, 2, 4), (14, 2, 4, 4), (9, 3, 8, 8), (8, 1, 4, 4), (12, 2, 4, 2)],
)
def test_attention_groups_are_padded_only_where_they_must_be(heads: int, groups: int, tensor: int, padded: int) -> None:
    config = dataclasses.replace(BASE, heads=heads, kv_heads=groups, head_dim=1 if heads == 8 else 2)
    assert padded_groups(config, tensor) == padded


def test_value_head_replaces_the_vocabulary() -> None:
    sizes = ParallelSizes(2, pipeline=2)
    first, last = (shard_map(BASE, sizes, sizes.coordinates(rank), value_head=True) for rank in (0, 1))
    assert not any(p.param in ("output_layer.weight", "value_head.weight") for p in first)
    assert [p.hf_name for p in last if p.param == "value_head.weight"] == ["score.weight"]
    assert not any(p.param == "output_layer.weight" for p in last)


@pytest.mark.parametrize(
    ("parallel", "world", "config", "message"),
    [
        ({"tensor": 4}, 4, dataclasses.replace(BASE, ffn=18), "18 ffn"),
        ({"expert": 2}, 2, BASE, "0 experts"),
        ({"expert": 3}, 3, MOE, "4 experts"),
        ({"tensor": 2}, 2, MOE, "parallel.sequence"),
        ({"pipeline": 8}, 8, BASE, "leave a chunk without layers"),
        ({"pipeline": 2, "pipeline_layers": (1, 2)}, 2, BASE, "2 stages and 4 layers"),
    ],
)
def test_refused_layouts(parallel: dict, world: int, config: FamilyConfig, message: str) -> None:
    settings_ = ParallelConfig(**parallel)
    with pytest.raises(InputError, match=message):
        check_layout(config, settings_, ParallelSizes.from_config(settings_, world))


def test_every_family_is_listed_under_its_architecture() -> None:
    assert all(family.architecture == name for name, family in FAMILIES.items())
    assert len({family.name for family in FAMILIES.values()}) == len(FAMILIES) == 6
