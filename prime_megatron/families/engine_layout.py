"""What an engine's tensors are made of: pieces of Hugging Face tensors, fused and cut as each engine wants them.

A tensor with more dimensions than its pieces (stacked experts) is addressed through its flattened form: w13 of shape
[experts, 2 x ffn, hidden] as [experts x 2 x ffn, hidden].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from prime_megatron.errors import InputError
from prime_megatron.parallel.shards import Region, ShardSlice

VOCAB_MULTIPLE = 64
"""vLLM and SGLang round the rows of embedding and output layer up to a multiple of this."""
SGLANG_EXPERTS = "experts"
VLLM_EXPERTS = "experts.routed_experts"
"""Module of the fused expert weights below the layer's MoE block."""
_EXPERT_NAMES = {
    "Qwen3MoeForCausalLM": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "MixtralForCausalLM": ("block_sparse_moe", ("w1", "w3", "w2")),
}
"""Architecture -> its MoE block, and an expert's gate, up and down."""


class Sizes(Protocol):
    """A model's shape, as ``mcore.families.FamilyConfig`` spells it."""

    @property
    def architecture(self) -> str: ...
    @property
    def hidden(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def output_bias(self) -> bool: ...
    @property
    def mlp_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def experts(self) -> int: ...
    @property
    def expert_ffn(self) -> int: ...


def whole_tensors(pieces: Iterable[ShardSlice]) -> list[ShardSlice]:
    """Targets of an engine that holds unfused, unsplit Hugging Face tensors, in order of first appearance."""
    shapes = {piece.hf_name: piece.hf_shape for piece in pieces}
    return [_whole(name, name, shape) for name, shape in shapes.items()]


def module_pieces(sizes: Sizes, pieces: Iterable[ShardSlice]) -> list[ShardSlice]:
    """What a whole model of transformers' own classes (5.x) holds, by its parameter names.

    Those of the checkpoint, but a layer's experts are two tensors, whatever the block is called on disk:
    mlp.experts.gate_up_proj [experts, gate rows then up rows, hidden] and mlp.experts.down_proj
    [experts, hidden, expert ffn]; see ``Qwen3MoeExperts`` and ``MixtralExperts`` in transformers.

    Args:
        pieces: of the training ranks, for the checkpoint's tensors and their order.
    Raises:
        InputError: experts of an unknown architecture.
    """
    whole = whole_tensors(pieces)
    if not sizes.experts:
        return whole
    places = _module_places(sizes)
    return [
        _rows(*places[piece.param], piece.param, 0, piece.hf_shape[0], piece.hf_shape)
        if piece.param in places
        else piece
        for piece in whole
    ]


def fused_pieces(
    sizes: Sizes, tensor_size: int, tensor_rank: int, *, experts_module: str = SGLANG_EXPERTS, expert_size: int = 1
) -> list[ShardSlice]:
    """What one tensor-parallel rank of vLLM (0.32) or SGLang (0.5.23) holds, by that engine's parameter names.

    q, k, v are one tensor (this rank's queries, keys, values), gate and up another; fewer key-value heads than
    ranks are repeated on neighbouring ranks; the vocabulary is split after rounding up, so the last ranks may end in
    rows that no piece covers; experts are stacked, each split like a dense layer over ``tensor_size / expert_size``
    neighbouring ranks, which hold ``1 / expert_size`` of them; a tied model has no lm_head.weight.

    Args:
        experts_module: SGLANG_EXPERTS or VLLM_EXPERTS; without experts the two engines have the same names.
        expert_size: expert-parallel size within the tensor-parallel ranks (SGLang's ep_size).
    Raises:
        InputError: a size that ``tensor_size`` does not divide, as those engines refuse it; experts that cannot be
            spread; an unknown MoE.
    """
    check_engine(sizes, tensor_size, expert_size)
    assert 0 <= tensor_rank < tensor_size
    outer = ["model.embed_tokens.weight"] + ([] if sizes.tied else ["lm_head.weight"])
    pieces = [piece for name in outer for piece in _vocabulary(sizes, name, tensor_size, tensor_rank)]
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}."
        pieces += [_whole(at + norm, at + norm, (sizes.hidden,)) for norm in _norms()]
        pieces += _attention(sizes, f"{at}self_attn.", tensor_size, tensor_rank)
        if sizes.experts:
            pieces += _experts(sizes, at, (tensor_size // expert_size, expert_size), tensor_rank, experts_module)
        else:
            pieces += _dense(sizes, f"{at}mlp.", tensor_size, tensor_rank)
    return [*pieces, _whole("model.norm.weight", "model.norm.weight", (sizes.hidden,))]


def fused_shapes(
    sizes: Sizes, tensor_size: int, *, experts_module: str = SGLANG_EXPERTS, expert_size: int = 1
) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of one rank of that engine, padding rows included; equal on all ranks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in fused_pieces(sizes, tensor_size, 0, experts_module=experts_module, expert_size=expert_size):
        ends = tuple(stop for _, stop in piece.local)
        shapes[piece.param] = tuple(map(max, ends, shapes.get(piece.param, ends)))
    rows = padded_rows(sizes.vocab, tensor_size) // tensor_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in shapes:
            shapes[name] = (rows, sizes.hidden)
    for name, shape in shapes.items():
        if name.endswith((".w13_weight", ".w2_weight")):
            count = sizes.experts // expert_size
            shapes[name] = (count, shape[0] // count, shape[1])
    return shapes


def padded_rows(vocab: int, tensor_size: int) -> int:
    """Rows of the vocabulary over all ranks: a multiple of 64, and of 64 x ranks where 64 alone cannot be split."""
    rows = -(-vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    multiple = VOCAB_MULTIPLE * (tensor_size if rows % tensor_size else 1)
    return -(-vocab // multiple) * multiple


def check_engine(sizes: Sizes, tensor_size: int, expert_size: int) -> None:
    """InputError where those engines cannot split the model over so many ranks."""
    assert tensor_size % expert_size == 0, (tensor_size, expert_size)
    if expert_size > 1 and (not sizes.experts or sizes.experts % expert_size):
        raise InputError(f"rollout.expert: {expert_size} does not divide the model's {sizes.experts} experts")
    kv, ffn = sizes.kv_heads, sizes.expert_ffn if sizes.experts else sizes.ffn
    inner = tensor_size // expert_size
    for size, count, what in ((tensor_size, sizes.heads, "attention heads"), (inner, ffn, "ffn columns")):
        if count % size:
            raise InputError(f"rollout.tensor: {size} does not divide the model's {count} {what}")
    if kv % tensor_size and tensor_size % kv:
        raise InputError(f"rollout.tensor: {tensor_size} neither divides nor is a multiple of {kv} key-value heads")
    _check_experts(sizes)


def _module_places(sizes: Sizes) -> dict[str, tuple[str, int]]:
    """Parameter and first row (of the flattened one) for the tensors that transformers names otherwise."""
    _check_experts(sizes)
    block, (gate, up, down) = _EXPERT_NAMES[sizes.architecture]
    places: dict[str, tuple[str, int]] = {}
    for layer in range(sizes.layers):
        of, to = f"model.layers.{layer}.{block}.", f"model.layers.{layer}.mlp."
        places[f"{of}gate.weight"] = (f"{to}gate.weight", 0)
        for expert in range(sizes.experts):
            at, rows = f"{of}experts.{expert}.", 2 * expert * sizes.expert_ffn
            places[f"{at}{gate}.weight"] = (f"{to}experts.gate_up_proj", rows)
            places[f"{at}{up}.weight"] = (f"{to}experts.gate_up_proj", rows + sizes.expert_ffn)
            places[f"{at}{down}.weight"] = (f"{to}experts.down_proj", expert * sizes.hidden)
    return places


def _check_experts(sizes: Sizes) -> None:
    if sizes.experts and sizes.architecture not in _EXPERT_NAMES:
        raise InputError(f"rollout: the engines' expert weights of {sizes.architecture} are not known")


def _norms() -> Sequence[str]:
    return "input_layernorm.weight", "post_attention_layernorm.weight"


def _vocabulary(sizes: Sizes, name: str, ranks: int, rank: int) -> Iterator[ShardSlice]:
    rows = padded_rows(sizes.vocab, ranks) // ranks
    start, stop = rank * rows, min((rank + 1) * rows, sizes.vocab)
    if start < stop:
        yield _rows(name, 0, name, start, stop, (sizes.vocab, sizes.hidden))


def _attention(sizes: Sizes, at: str, ranks: int, rank: int) -> Iterator[ShardSlice]:
    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    queries = q // ranks
    keys = max(kv // ranks, sizes.head_dim)
    head = rank * sizes.kv_heads // ranks * sizes.head_dim if ranks > sizes.kv_heads else rank * keys
    tails: list[tuple[str, tuple[int, ...]]] = [("weight", (sizes.hidden,))]
    if sizes.qkv_bias:
        tails.append(("bias", ()))
    for kind, tail in tails:
        fused = f"{at}qkv_proj.{kind}"
        yield _rows(fused, 0, f"{at}q_proj.{kind}", rank * queries, (rank + 1) * queries, (q, *tail))
        yield _rows(fused, queries, f"{at}k_proj.{kind}", head, head + keys, (kv, *tail))
        yield _rows(fused, queries + keys, f"{at}v_proj.{kind}", head, head + keys, (kv, *tail))
    yield _columns(f"{at}o_proj.weight", 0, f"{at}o_proj.weight", ranks, rank, (sizes.hidden, q))
    if sizes.output_bias:
        yield _whole(f"{at}o_proj.bias", f"{at}o_proj.bias", (sizes.hidden,))
    if sizes.qk_norm:
        for name in ("q_norm.weight", "k_norm.weight"):
            yield _whole(at + name, at + name, (sizes.head_dim,))


def _dense(sizes: Sizes, at: str, ranks: int, rank: int) -> Iterator[ShardSlice]:
    rows = sizes.ffn // ranks
    tails: list[tuple[str, tuple[int, ...]]] = [("weight", (sizes.hidden,))]
    if sizes.mlp_bias:
        tails.append(("bias", ()))
    for kind, tail in tails:
        fused = f"{at}gate_up_proj.{kind}"
        for index, name in enumerate(("gate_proj", "up_proj")):
            shape = (sizes.ffn, *tail)
            yield _rows(fused, index * rows, f"{at}{name}.{kind}", rank * rows, (rank + 1) * rows, shape)
    yield _columns(f"{at}down_proj.weight", 0, f"{at}down_proj.weight", ranks, rank, (sizes.hidden, sizes.ffn))
    if sizes.mlp_bias:
        yield _whole(f"{at}down_proj.bias", f"{at}down_proj.bias", (sizes.hidden,))


def _experts(sizes: Sizes, at: str, ranks_and_groups: tuple[int, int], rank: int, module: str) -> Iterator[ShardSlice]:
    """ranks_and_groups: ranks over which each expert is split, and groups of such ranks with experts of their own."""
    ranks, groups = ranks_and_groups
    group, rank = divmod(rank, ranks)
    block, (gate, up, down) = _EXPERT_NAMES[sizes.architecture]
    at += f"{block}."
    yield _whole(f"{at}gate.weight", f"{at}gate.weight", (sizes.experts, sizes.hidden))
    rows = sizes.expert_ffn // ranks
    count = sizes.experts // groups
    for slot in range(count):
        expert = group * count + slot
        for index, name in enumerate((gate, up)):
            source, shape = f"{at}experts.{expert}.{name}.weight", (sizes.expert_ffn, sizes.hidden)
            place = (2 * slot + index) * rows
            yield _rows(f"{at}{module}.w13_weight", place, source, rank * rows, (rank + 1) * rows, shape)
        source, shape = f"{at}experts.{expert}.{down}.weight", (sizes.hidden, sizes.expert_ffn)
        yield _columns(f"{at}{module}.w2_weight", slot * sizes.hidden, source, ranks, rank, shape)


def _whole(param: str, name: str, shape: tuple[int, ...]) -> ShardSlice:
    region: Region = tuple((0, size) for size in shape)
    return ShardSlice(param, 0, region, name, region, shape)


def _rows(param: str, place: int, name: str, start: int, stop: int, shape: tuple[int, ...]) -> ShardSlice:
    """Rows ``start`` to ``stop`` of a tensor, at row ``place`` of the parameter."""
    rest: Region = tuple((0, size) for size in shape[1:])
    return ShardSlice(param, 0, ((place, place + stop - start), *rest), name, ((start, stop), *rest), shape)


def _columns(param: str, place: int, name: str, ranks: int, rank: int, shape: tuple[int, int]) -> ShardSlice:
    """This rank's columns of a tensor, from row ``place`` of the parameter on."""
    width = shape[1] // ranks
    local: Region = ((place, place + shape[0]), (0, width))
    return ShardSlice(param, 0, local, name, ((0, shape[0]), (rank * width, (rank + 1) * width)), shape)
