"""Which piece of which Hugging Face tensor each rank holds, as pure data: load, export and reshard all read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prime_megatron.config.model import ParallelConfig
from prime_megatron.errors import InputError
from prime_megatron.families import FAMILIES
from prime_megatron.families.base import FamilyConfig, HfTensor, Rule, Split
from prime_megatron.parallel.layers import layer_ranges
from prime_megatron.parallel.shards import Region, ShardSlice
from prime_megatron.parallel.topology import Coordinates, ParallelSizes

VALUE_HEAD = Rule("value_head.weight", Split.REPLICATED, (HfTensor("score.weight", ("one", "hidden")),))
"""The critic's output, under the name transformers gives the head of a sequence classifier with one label."""


@dataclass(frozen=True)
class _Piece:
    """Rows ``start`` to ``start + length`` of one source, at row ``local`` of the rank's parameter."""

    source: int
    start: int
    local: int
    length: int


def padded_vocab(vocab: int, tensor: int) -> int:
    """Vocabulary rounded up so that every tensor-parallel rank holds equally many rows."""
    return -(-vocab // tensor) * tensor


def padded_groups(config: FamilyConfig, tensor: int) -> int:
    """Key-value groups (each with its query heads) that Megatron is told of, so that any tensor size works.

    Normally the model's own. Where they cannot be split, groups of zeros are added: a zero value gives a zero
    output, and zero columns of the projection after it neither add anything nor pass a gradient back, so they
    stay zero in training and change no result. Fewer groups than ranks is Megatron's own case (a group's rows
    spread over ranks) where the rows divide.
    """
    rows = (config.heads + 2 * config.kv_heads) * config.head_dim
    spread = tensor % config.kv_heads == 0 and config.heads % tensor == 0 and rows % tensor == 0
    if config.kv_heads % tensor == 0 or spread:
        return config.kv_heads
    return -(-config.kv_heads // tensor) * tensor


def check_shapes(config: FamilyConfig, sizes: ParallelSizes) -> None:
    """InputError, with the arithmetic, where a model cannot be split this way."""
    if config.ffn % sizes.tensor and not config.experts:
        raise InputError(f"parallel.tensor {sizes.tensor} does not divide the model's {config.ffn} ffn")
    if sizes.expert > 1 and (config.experts == 0 or config.experts % sizes.expert):
        raise InputError(f"parallel.expert {sizes.expert} does not divide the model's {config.experts} experts")
    if config.experts and config.expert_ffn % sizes.expert_tensor:
        raise InputError(
            f"parallel.expert_tensor {sizes.expert_tensor} does not divide the experts' {config.expert_ffn} ffn"
        )


def check_layout(config: FamilyConfig, parallel: ParallelConfig, sizes: ParallelSizes) -> None:
    """InputError where megatron-core cannot run this model in this layout; needs no process group."""
    check_shapes(config, sizes)
    layer_ranges(config.layers, sizes.pipeline, sizes.virtual_pipeline, parallel.pipeline_layers)
    if config.experts and sizes.tensor > 1 and not parallel.sequence:
        raise InputError(
            f"parallel.sequence: megatron-core trains mixture-of-experts models at tensor {sizes.tensor} only with "
            "sequence parallelism; set it to true"
        )


def shard_map(
    config: FamilyConfig,
    sizes: ParallelSizes,
    at: Coordinates,
    stage_layers: Sequence[int] | None = None,
    *,
    value_head: bool = False,
    transformer_engine: bool = False,
) -> list[ShardSlice]:
    """Every piece of every Hugging Face tensor that the rank at ``at`` holds.

    stage_layers: parallel.pipeline_layers. value_head: the critic's output instead of the vocabulary's.
    transformer_engine: parameter names of Transformer Engine's layers. Padding rows of the vocabulary belong
    to no piece. Replicated pieces appear on every rank that holds them. Raises InputError as check_shapes.
    """
    check_shapes(config, sizes)
    chunks = layer_ranges(config.layers, sizes.pipeline, sizes.virtual_pipeline, stage_layers)[at.pipeline]
    slices: list[ShardSlice] = []
    for rule in rules_of(config, value_head):
        for chunk, layers in enumerate(chunks):
            first = at.pipeline == 0 and chunk == 0
            last = at.pipeline == sizes.pipeline - 1 and chunk == len(chunks) - 1
            if not is_present(rule, config, sizes, first, last):
                continue
            for param, sources in _instances(rule, config, sizes, at, layers):
                name = _te_name(param, bool(config.experts)) if transformer_engine else param
                slices.extend(_slices(rule, sources, name, chunk, config, sizes, at))
    return slices


def rules_of(config: FamilyConfig, value_head: bool) -> list[Rule]:
    """The parameters of a model; value_head: the critic's output in place of the vocabulary's."""
    rules = list(FAMILIES[config.architecture].rules(config))
    if value_head:
        rules = [rule for rule in rules if rule.param != "output_layer.weight"] + [VALUE_HEAD]
    return rules


def is_present(rule: Rule, config: FamilyConfig, sizes: ParallelSizes, first: bool, last: bool) -> bool:
    """Whether a chunk has this parameter. A tied output layer is the embedding itself on one stage, a copy on more."""
    if rule.param.startswith("embedding."):
        return first
    if rule.param == "output_layer.weight":
        return last and not (config.tied and sizes.pipeline == 1)
    if "{layer}" in rule.param:
        return True
    return last


def _instances(
    rule: Rule, config: FamilyConfig, sizes: ParallelSizes, at: Coordinates, layers: range
) -> Iterator[tuple[str, list[HfTensor]]]:
    """The rule's parameters of one chunk, with the layer and expert numbers filled in."""
    layered = "{layer}" in rule.param
    per_rank = config.experts // sizes.expert if "{expert}" in rule.param else 1
    for index, layer in enumerate(layers if layered else range(1)):
        for local_expert in range(per_rank):
            expert = at.expert * per_rank + local_expert
            param = rule.param.replace("{layer}", str(index)).replace("{expert}", str(local_expert))
            yield (
                param,
                [
                    HfTensor(s.name.replace("{layer}", str(layer)).replace("{expert}", str(expert)), s.dims)
                    for s in rule.sources
                ],
            )


def _slices(
    rule: Rule,
    sources: list[HfTensor],
    param: str,
    chunk: int,
    config: FamilyConfig,
    sizes: ParallelSizes,
    at: Coordinates,
) -> Iterator[ShardSlice]:
    of_expert = "{expert}" in rule.param
    ranks, rank = (sizes.expert_tensor, at.expert_tensor) if of_expert else (sizes.tensor, at.tensor)
    for piece in _pieces(rule.layout, sources, config, ranks, rank):
        source = sources[piece.source]
        shape = tuple(config.size(dim) for dim in source.dims)
        rows = (piece.start, piece.start + piece.length)
        local_rows = (piece.local, piece.local + piece.length)
        hf_rest: Region = tuple((0, size) for size in shape[1:])
        local_rest = hf_rest
        if rule.layout is Split.ROW:
            width = _input_width(source, config, ranks) // ranks
            start, stop = rank * width, min((rank + 1) * width, shape[1])
            if start >= stop:
                continue
            hf_rest, local_rest = ((start, stop),), ((0, stop - start),)
        yield ShardSlice(param, chunk, (local_rows, *local_rest), source.name, (rows, *hf_rest), shape)


def _input_width(source: HfTensor, config: FamilyConfig, ranks: int) -> int:
    """Columns of a row-parallel layer over all ranks, groups of zeros included."""
    width = config.size(source.dims[1])
    return width // config.kv_heads * padded_groups(config, ranks) if source.dims[1] == "q" else width


def _pieces(layout: Split, sources: list[HfTensor], config: FamilyConfig, ranks: int, rank: int) -> list[_Piece]:
    """Row ranges of the sources on this tensor-parallel rank, in the order of the local parameter."""
    rows = [config.size(source.dims[0]) for source in sources]
    if layout in (Split.REPLICATED, Split.ROW):
        return [_Piece(0, 0, 0, rows[0])]
    if layout is Split.COLUMN:
        return _clip([_Piece(0, 0, 0, rows[0])], rank * (rows[0] // ranks), (rank + 1) * (rows[0] // ranks))
    if layout is Split.VOCAB:
        per_rank = padded_vocab(rows[0], ranks) // ranks
        return _clip([_Piece(0, 0, 0, rows[0])], rank * per_rank, (rank + 1) * per_rank)
    if layout is Split.GATE_UP:
        per_rank = rows[0] // ranks
        return [_Piece(source, rank * per_rank, source * per_rank, per_rank) for source in (0, 1)]
    whole = _interleaved(config)
    per_rank = sum(rows) // config.kv_heads * padded_groups(config, ranks) // ranks
    return _clip(whole, rank * per_rank, (rank + 1) * per_rank)


def _interleaved(config: FamilyConfig) -> list[_Piece]:
    """Megatron's linear_qkv: for each key-value group its query heads, its key, its value."""
    queries = config.heads // config.kv_heads * config.head_dim
    lengths = (queries, config.head_dim, config.head_dim)
    pieces = []
    local = 0
    for group in range(config.kv_heads):
        for source, length in enumerate(lengths):
            pieces.append(_Piece(source, group * length, local, length))
            local += length
    return pieces


def _clip(pieces: list[_Piece], start: int, stop: int) -> list[_Piece]:
    """The parts of the pieces within rows start to stop of the whole parameter, counted from start."""
    clipped = []
    for piece in pieces:
        low, high = max(piece.local, start), min(piece.local + piece.length, stop)
        if low < high:
            clipped.append(_Piece(piece.source, piece.start + low - piece.local, low - start, high - low))
    return clipped


def _te_name(param: str, moe: bool) -> str:
    """The name under Transformer Engine: norms live in the linear layer after them, experts in one module."""
    param = param.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
    if not moe:
        param = param.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
    if ".local_experts." in param:
        head, tail = param.split("local_experts.")
        expert, linear, kind = tail.split(".")
        param = f"{head}{linear}.{kind}{expert}"
    return param
