"""The planner and the engines' layouts, for any model and any two layouts, against numpy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.errors import InputError, RunError
from prime_megatron.families.engine_layout import (
    VLLM_EXPERTS,
    fused_pieces,
    fused_shapes,
    module_pieces,
    padded_rows,
    whole_tensors,
)
from prime_megatron.parallel.shards import Region, ShardSlice, as_slices
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.weights.plan import ReshardPlan, hold, plan_block
from prime_megatron.weights.slices import copy_slices, part
from tests.support.engine_oracle import engine_tensors
from tests.support.reshard_cases import Case, cases, numbered, train_params
from tests.unit.test_families_megatron_layout import BASE, MOE


def execute(plan: ReshardPlan, params: list[dict], targets: list[dict[str, torch.Tensor]]) -> None:
    """All ranks of a block in one process; every target element is written exactly once."""
    written = [{name: torch.zeros_like(tensor) for name, tensor in mine.items()} for mine in targets]
    for rank, copies in enumerate(plan.local):
        copy_slices(copies, params[rank], targets[rank])
        for copy in copies:
            part(written[rank][copy.target], copy.to).add_(1)
    for transfer in (transfer for message in plan.messages(11) for transfer in message.transfers):
        assert transfer.owner not in transfer.receivers, "a rank must not send to itself"
        assert transfer.receivers == tuple(sorted({rank for place in transfer.destinations for rank in place.ranks}))
        source = part(params[transfer.owner][transfer.chunk, transfer.source], transfer.of)
        for place in transfer.destinations:
            for rank in place.ranks:
                part(targets[rank][place.target], place.to).copy_(source)
                part(written[rank][place.target], place.to).add_(1)
    for mine, tensors in zip(written, targets, strict=True):
        for name, count in mine.items():
            assert ((count == 1) == (tensors[name] != 0)).all(), name
            assert (count <= 1).all(), f"{name} is written twice"


def check_shipments(case: Case, plan: ReshardPlan, block: list[int], wants: list[list[ShardSlice]]) -> None:
    """No element travels twice, to nobody, or to a rank that has it."""
    held = [{(p.hf_name, cell) for p in case.sources(rank) for cell in _cells(p)} for rank in block]
    sent: Counter[tuple[int, int, str, tuple[int, ...]]] = Counter()
    for transfer in plan.transfers:
        assert transfer.destinations
        for cell in np.ndindex(*(stop - start for start, stop in transfer.of)):
            place = tuple(low + i for (low, _), i in zip(transfer.of, cell, strict=True))
            sent[transfer.owner, transfer.chunk, transfer.source, place] += 1
    assert not sent or max(sent.values()) == 1
    needed = [{(p.hf_name, cell) for p in pieces for cell in _cells(p)} for pieces in wants]
    missing = set().union(*(need - have for need, have in zip(needed, held, strict=True)))
    assert len(sent) == len(missing), "what travels is what somebody lacks"
    assert [p for s in plan.messages(10**9) for p in s.transfers] == list(plan.transfers)
    for limit in (7, 50, 10**9):
        messages = plan.messages(limit)
        parts = [p for s in messages for p in s.transfers]
        cells = Counter((p.owner, p.chunk, p.source, cell) for p in parts for cell in _part_cells(p.of))
        assert cells == Counter(sent), "cut or not, every element travels once"
        for s in messages:
            assert 0 < s.numel == sum(p.numel for p in s.transfers) <= limit
            assert {(p.owner, p.receivers) for p in s.transfers} == {(s.owner, s.receivers)}


def _cells(piece: ShardSlice) -> list[tuple[int, ...]]:
    starts = [start for start, _ in piece.hf]
    return [tuple(np.add(starts, cell)) for cell in np.ndindex(*piece.shape)]


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_every_layout_into_fused_engines(case: Case) -> None:
    tensors = numbered(case)
    for block in case.blocks():
        shards = [rank % case.engine for rank in block]
        wants = [fused_pieces(case.config, case.engine, shard) for shard in shards]
        plan = plan_block(hold([case.sources(rank) for rank in block]), wants)
        shapes = fused_shapes(case.config, case.engine)
        targets = [{name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()} for _ in block]
        execute(plan, [train_params(case.sources(rank), tensors) for rank in block], targets)
        for shard, found in zip(shards, targets, strict=True):
            wanted = engine_tensors(case.config, tensors, case.engine, shard)
            assert {name: value.shape for name, value in wanted.items()} == shapes
            for name, value in wanted.items():
                assert np.array_equal(found[name].numpy(), value), name
    check_shipments(case, plan, block, wants)


@settings(max_examples=15, deadline=None)
@given(
    case=cases().filter(lambda case: case.config.experts), expert=st.sampled_from([2, 4]), inner=st.sampled_from([1, 2])
)
def test_every_layout_into_engines_with_expert_parallelism(case: Case, expert: int, inner: int) -> None:
    config, tensors = case.config, numbered(case)
    block, ranks = case.blocks()[0], expert * inner
    wants = [fused_pieces(config, ranks, rank % ranks, expert_size=expert) for rank in block]
    plan = plan_block(hold([case.sources(rank) for rank in block]), wants)
    shapes = fused_shapes(config, ranks, expert_size=expert)
    targets = [{name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()} for _ in block]
    execute(plan, [train_params(case.sources(rank), tensors) for rank in block], targets)
    for rank, found in zip(block, targets, strict=True):
        wanted = engine_tensors(config, tensors, ranks, rank % ranks, expert)
        assert {name: value.shape for name, value in wanted.items()} == shapes
        for name, value in wanted.items():
            assert np.array_equal(found[name].numpy(), value), name


@settings(max_examples=15, deadline=None)
@given(
    case=cases(),
    destinations=st.lists(st.sampled_from([(1, 0), (2, 0), (2, 1), (4, 1), (4, 3)]), min_size=1, max_size=4),
)
def test_ranks_that_want_different_parts(case: Case, destinations: list[tuple[int, int]]) -> None:
    """Overlapping needs are cut into parts that travel once, each to everyone who needs it."""
    tensors = numbered(case)
    block = case.blocks()[0]
    mine = [destinations[index % len(destinations)] for index in range(len(block))]
    wants = [fused_pieces(case.config, ranks, rank) for ranks, rank in mine]
    plan = plan_block(hold([case.sources(rank) for rank in block]), wants)
    targets = [
        {name: torch.zeros(shape, dtype=torch.int64) for name, shape in fused_shapes(case.config, ranks).items()}
        for ranks, _ in mine
    ]
    execute(plan, [train_params(case.sources(rank), tensors) for rank in block], targets)
    for (ranks, rank), found in zip(mine, targets, strict=True):
        for name, value in engine_tensors(case.config, tensors, ranks, rank).items():
            assert np.array_equal(found[name].numpy(), value), name
    sent = sum(transfer.numel for transfer in plan.transfers)
    cells = {(p.owner, p.chunk, p.source, cell) for p in plan.transfers for cell in _part_cells(p.of)}
    assert sent == len(cells), "something travels twice"


def _part_cells(box: Region) -> list[tuple[int, ...]]:
    return list(product(*(range(start, stop) for start, stop in box)))


@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_every_layout_into_whole_tensors(case: Case) -> None:
    """As an export: every rank, and then one rank alone, gets every Hugging Face tensor."""
    tensors = numbered(case)
    block = case.blocks()[-1]
    sources = [case.sources(rank) for rank in block]
    whole = whole_tensors(piece for pieces in sources for piece in pieces)
    params = [train_params(pieces, tensors) for pieces in sources]
    for wants in ([whole] * len(block), [whole] + [[]] * (len(block) - 1)):
        plan = plan_block(hold(sources), wants)
        targets = [
            {piece.param: torch.zeros(piece.hf_shape, dtype=torch.int64) for piece in pieces} for pieces in wants
        ]
        execute(plan, params, targets)
        for mine in filter(None, targets):
            assert mine.keys() == tensors.keys()
            assert all(np.array_equal(mine[name].numpy(), tensors[name]) for name in tensors)


@settings(max_examples=15, deadline=None)
@given(case=cases(), mixtral=st.booleans())
def test_every_layout_into_transformers_modules(case: Case, mixtral: bool) -> None:
    """Experts of a layer are two tensors: [E, gate rows then up rows, H] and [E, H, F]; the rest is as on disk."""
    if mixtral and case.config.experts:
        case = dataclasses.replace(case, config=dataclasses.replace(case.config, architecture="MixtralForCausalLM"))
        block, (gate, up, down) = "block_sparse_moe", ("w1", "w3", "w2")
    else:
        block, (gate, up, down) = "mlp", ("gate_proj", "up_proj", "down_proj")
    tensors = numbered(case)
    wanted = {name.replace(f".{block}.", ".mlp."): value for name, value in tensors.items() if ".experts." not in name}
    for layer in range(case.config.layers if case.config.experts else 0):
        parts = {
            name: [
                tensors[f"model.layers.{layer}.{block}.experts.{expert}.{name}.weight"]
                for expert in range(case.config.experts)
            ]
            for name in (gate, up, down)
        }
        at = f"model.layers.{layer}.mlp.experts."
        wanted[f"{at}gate_up_proj"] = np.concatenate([np.stack(parts[gate]), np.stack(parts[up])], axis=1)
        wanted[f"{at}down_proj"] = np.stack(parts[down])
    block_ranks = case.blocks()[-1]
    sources = [case.sources(rank) for rank in block_ranks]
    pieces = module_pieces(case.config, (piece for rank in sources for piece in rank))
    plan = plan_block(hold(sources), [pieces] * len(block_ranks))
    targets = [
        {name: torch.zeros(value.shape, dtype=torch.int64) for name, value in wanted.items()} for _ in block_ranks
    ]
    execute(plan, [train_params(mine, tensors) for mine in sources], targets)
    assert {piece.param for piece in pieces} == wanted.keys()
    for found in targets:
        for name, value in wanted.items():
            assert np.array_equal(found[name].numpy(), value), name


def test_one_rank_with_two_engine_shards() -> None:
    """A rank may fill several engine ranks' tensors; what both need travels once."""
    case = Case(BASE, ParallelSizes(2, pipeline=2), None, 2)
    tensors = numbered(case)
    wants = [
        [dataclasses.replace(p, param=f"{shard}/{p.param}") for shard in (0, 1) for p in fused_pieces(BASE, 2, shard)],
        [],
    ]
    plan = plan_block(hold([case.sources(0), case.sources(1)]), wants)
    shapes = fused_shapes(BASE, 2)
    filled = {f"{shard}/{name}": torch.zeros(s, dtype=torch.int64) for shard in (0, 1) for name, s in shapes.items()}
    execute(plan, [train_params(case.sources(rank), tensors) for rank in (0, 1)], [filled, {}])
    check_shipments(case, plan, [0, 1], wants)
    for shard in (0, 1):
        for name, value in engine_tensors(BASE, tensors, 2, shard).items():
            assert np.array_equal(filled[f"{shard}/{name}"].numpy(), value), name


def test_equal_layouts_are_copied_tensor_by_tensor() -> None:
    """One key-value group a rank: the trainer's fused tensors are the engine's, one copy each, nothing travels."""
    config = dataclasses.replace(BASE, vocab=128)
    case = Case(config, ParallelSizes(2, tensor=2), None, 2)
    wants = [fused_pieces(config, 2, rank) for rank in (0, 1)]
    plan = plan_block(hold([case.sources(rank) for rank in (0, 1)]), wants)
    assert not plan.transfers
    assert sorted(copy.target for copy in plan.local[1]) == sorted(fused_shapes(config, 2))


def test_a_tensor_that_nobody_holds_is_named() -> None:
    case = Case(BASE, ParallelSizes(2, pipeline=2), None, 1)
    with pytest.raises(RunError, match=r"no training rank holds lm_head\.weight\[.*for lm_head\.weight"):
        plan_block(hold([case.sources(0)]), [[p for p in fused_pieces(BASE, 1, 0) if p.param == "lm_head.weight"]])


def test_planning_a_large_model_is_linear() -> None:
    """80 layers over TP8 x PP4 into TP8 engines: the work grows with the pieces, not with their square."""
    config = dataclasses.replace(BASE, layers=80, heads=64, kv_heads=8, vocab=152064, ffn=64)
    case = Case(config, ParallelSizes(32, tensor=8, pipeline=4), None, 8)
    held = hold([case.sources(rank) for rank in range(32)])
    plan = plan_block(held, [fused_pieces(config, 8, rank % 8) for rank in range(32)])
    assert len(plan.transfers) < 80 * 12 * 8 + 100
    assert all(len(copies) < 300 for copies in plan.local)


@pytest.mark.parametrize(("vocab", "ranks", "rows"), [(151936, 2, 151936), (13, 2, 64), (65, 4, 128), (64, 3, 192)])
def test_vocabulary_padding(vocab: int, ranks: int, rows: int) -> None:
    assert padded_rows(vocab, ranks) == rows


def test_expert_module_names() -> None:
    names = {piece.param for piece in fused_pieces(MOE, 1, 0, experts_module=VLLM_EXPERTS)}
    assert "model.layers.0.mlp.experts.routed_experts.w13_weight" in names
    mixtral = dataclasses.replace(MOE, architecture="MixtralForCausalLM")
    pieces = {piece.hf_name: piece for piece in fused_pieces(mixtral, 2, 1)}
    assert pieces["model.layers.1.block_sparse_moe.experts.2.w3.weight"].local[0] == (20, 24)
    assert "model.layers.1.block_sparse_moe.gate.weight" in pieces


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (BASE, 16, "8 attention heads"),
        (dataclasses.replace(BASE, ffn=18), 4, "18 ffn"),
        (dataclasses.replace(BASE, heads=12, kv_heads=6), 4, "6 key-value heads"),
        (dataclasses.replace(MOE, architecture="Other"), 1, "Other"),
    ],
)
def test_refused_engine_layouts(config, ranks: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fused_pieces(config, ranks, 0)


@pytest.mark.parametrize(
    ("config", "message"), [(BASE, "0 experts"), (dataclasses.replace(MOE, experts=5), "5 experts")]
)
def test_experts_that_cannot_be_spread_are_refused(config, message: str) -> None:
    with pytest.raises(InputError, match=rf"rollout\.expert: 2 does not divide the model's {message}"):
        fused_pieces(config, 2, 0, expert_size=2)


def test_unknown_experts_have_no_module() -> None:
    with pytest.raises(InputError, match="Other"):
        module_pieces(dataclasses.replace(MOE, architecture="Other"), ())


def test_flattened_experts_are_addressed_in_place() -> None:
    stacked = torch.zeros(3, 4, 5)
    part(stacked, ((6, 8), (1, 2))).fill_(1.0)
    assert as_slices(((6, 8), (1, 2))) == (slice(6, 8), slice(1, 2))
    assert stacked.nonzero().tolist() == [[1, 2, 1], [1, 3, 1]]
