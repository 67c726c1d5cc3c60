"""How many parameters a model has, and how many of them Megatron builds on each rank. The only count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.families import FAMILIES
from prime_megatron.families.base import FamilyConfig, Rule, Split
from prime_megatron.families.megatron_layout import is_present, padded_groups, padded_vocab, rules_of
from prime_megatron.parallel.layers import layer_ranges
from prime_megatron.parallel.topology import ParallelSizes

ONE_RANK = ParallelSizes(world=1)
_ORDER = (
    "embedding.", ".input_layernorm.", ".linear_proj.weight", ".linear_proj.bias", ".linear_qkv.weight",
    ".linear_qkv.bias", ".q_layernorm.", ".k_layernorm.", ".pre_mlp_layernorm.", ".router.", ".linear_fc1.weight",
    ".linear_fc1.bias", ".linear_fc2.weight", ".linear_fc2.bias", ".final_layernorm.", "output_layer.", "value_head.",
)  # fmt: skip
"""Parts of names, in the order in which Megatron makes the parameters."""


@dataclass(frozen=True)
class ChunkParameters:
    """Elements of every parameter of one model chunk, in the order in which Megatron makes them (its layers without
    Transformer Engine): its flat buffers hold them one behind the other."""

    dense: tuple[int, ...]
    """Shared by the data- and context-parallel ranks."""
    experts: tuple[int, ...]
    """Of experts with gradient buffers of their own, shared by the ranks of the expert grid that hold the same ones."""
    copied: int | None
    """Place in ``dense`` of an embedding that the first and the last pipeline stage both have; None: there is none."""


@dataclass(frozen=True)
class RankParameters:
    """Parameters of one rank."""

    stage: int
    """Its pipeline stage."""
    chunks: tuple[ChunkParameters, ...]
    """One for each virtual stage."""

    @property
    def total(self) -> int:
        return sum(sum(chunk.dense) + sum(chunk.experts) for chunk in self.chunks)


def rank_parameters(
    family: FamilyConfig,
    sizes: ParallelSizes,
    stage: int,
    stage_layers: Sequence[int] | None = None,
    *,
    value_head: bool = False,
) -> RankParameters:
    """What Megatron builds on a rank of pipeline stage ``stage``, padding of vocabulary and attention groups included.

    All ranks of a stage hold equally many: tensor- and expert-parallel shards are of one size. A tied output layer is
    the embedding itself on one stage and a copy on the last of several. stage_layers: parallel.pipeline_layers.
    value_head: the critic's output in place of the vocabulary's. Raises InputError where the layers do not split.
    """
    ranges = layer_ranges(family.layers, sizes.pipeline, sizes.virtual_pipeline, stage_layers)[stage]
    rules = sorted(rules_of(family, value_head), key=lambda rule: _place(rule.param))
    chunks = []
    for index, layers in enumerate(ranges):
        first = stage == 0 and index == 0
        last = stage == sizes.pipeline - 1 and index == len(ranges) - 1
        here = [rule for rule in rules if is_present(rule, family, sizes, first, last)]
        chunks.append(_chunk(here, family, sizes, len(layers), copies=sizes.pipeline > 1 and not value_head))
    return RankParameters(stage, tuple(chunks))


def _chunk(
    rules: Sequence[Rule], family: FamilyConfig, sizes: ParallelSizes, num_layers: int, *, copies: bool
) -> ChunkParameters:
    """copies: a tied output layer is a copy on another stage."""
    of_layer = [rule for rule in rules if "{layer}" in rule.param and "{expert}" not in rule.param]
    of_expert = [_local_size(rule, family, sizes.expert_tensor) for rule in rules if "{expert}" in rule.param]
    experts = of_expert * (family.experts // sizes.expert) if family.experts else []
    # As Megatron marks them, and ``mcore.model`` where Megatron does not.
    apart = sizes.expert > 1 or sizes.expert_tensor != sizes.tensor
    layer = [_local_size(rule, family, sizes.tensor) for rule in of_layer] + ([] if apart else experts)
    outer = [rule for rule in rules if "{layer}" not in rule.param]
    before = [rule for rule in outer if rule.param.startswith("embedding.")]
    after = [rule for rule in outer if rule not in before]
    dense = [
        *(_local_size(rule, family, sizes.tensor) for rule in before),
        *layer * num_layers,
        *(_local_size(rule, family, sizes.tensor) for rule in after),
    ]
    copied = None
    if family.tied and copies:
        names = [rule.param for rule in after]
        at_end = (
            names.index("output_layer.weight") - len(names) + len(dense) if "output_layer.weight" in names else None
        )
        copied = 0 if before else at_end
    return ChunkParameters(tuple(dense), tuple(experts * num_layers) if apart else (), copied)


def _place(param: str) -> int:
    """Where a parameter comes among those of its chunk, or of its layer."""
    return next(index for index, part in enumerate(_ORDER) if part in param)


def num_parameters(family: FamilyConfig) -> int:
    """Parameters of the whole model; tied embeddings count once."""
    return rank_parameters(family, ONE_RANK, 0).total


def num_matmul_parameters(family: FamilyConfig) -> int:
    """Parameters that multiply every token: projections, feed-forward (active experts only), router and output layer,
    tied or not; no norms, no biases, not the embedding's lookup."""
    total = 0
    for rule in FAMILIES[family.architecture].rules(family):
        matrix = all(len(source.dims) > 1 for source in rule.sources)
        if matrix and rule.param != "embedding.word_embeddings.weight":
            times = family.layers if "{layer}" in rule.param else 1
            times *= family.experts_per_token if "{expert}" in rule.param else 1
            total += times * _local_size(rule, family, 1)
    return total


def local_groups(family: FamilyConfig, tensor: int) -> tuple[int, int]:
    """Width of the queries and of the keys (as of the values) on one tensor-parallel rank, padded groups included.

    Where fewer groups than ranks spread their rows, every rank still works on a whole group's key and value.
    """
    groups = padded_groups(family, tensor)
    queries = family.heads // family.kv_heads * groups * family.head_dim // tensor
    return queries, max(1, groups // tensor) * family.head_dim


def _local_size(rule: Rule, family: FamilyConfig, ranks: int) -> int:
    """Elements of one instance of the Megatron parameter on one of ``ranks`` tensor-parallel ranks."""
    shapes = [[family.size(dim) for dim in source.dims] for source in rule.sources]
    whole = sum(math.prod(shape) for shape in shapes)
    if rule.layout is Split.REPLICATED:
        return whole
    if rule.layout is Split.VOCAB:
        return padded_vocab(shapes[0][0], ranks) // ranks * shapes[0][1]
    if rule.layout is Split.QKV or (rule.layout is Split.ROW and rule.sources[0].dims[1] == "q"):
        # The model's own groups, or those that padding makes of them: proportional.
        return whole // family.kv_heads * padded_groups(family, ranks) // ranks
    return whole // ranks
