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


@dataclass(frozen=True)
class RankParameters:
    """Parameters of one rank, by the group of ranks that shares their optimizer state."""

    dense: int
    """Shared by the data- and context-parallel ranks."""
    experts: int
    """Shared by the ranks of the expert grid that hold the same experts."""

    @property
    def total(self) -> int:
        return self.dense + self.experts


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
    chunks = layer_ranges(family.layers, sizes.pipeline, sizes.virtual_pipeline, stage_layers)[stage]
    first, last = stage == 0, stage == sizes.pipeline - 1
    dense = experts = 0
    for rule in rules_of(family, value_head):
        of_expert = "{expert}" in rule.param
        size = _local_size(rule, family, sizes.expert_tensor if of_expert else sizes.tensor)
        if of_expert:
            experts += size * sum(map(len, chunks)) * (family.experts // sizes.expert)
        elif "{layer}" in rule.param:
            dense += size * sum(map(len, chunks))
        elif is_present(rule, family, sizes, first, last):
            dense += size
    return RankParameters(dense, experts)


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
