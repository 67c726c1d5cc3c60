"""The bench measures the real thing: Megatron's layout, a chain that gives the same weights, a table that adds up."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch

from prime_megatron.families.engine_layout import fused_pieces
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.weights.plan import hold, plan_block
from tests.unit.test_families_megatron_layout import BASE
from tools.benches import buckets
from tools.benches.reshard import Setup
from tools.benches.reshard_table import plan_table
from tools.benches.reshard_work.shapes import Shape, megatron_pieces

SHAPE = Shape(hidden=24, ffn=16, layers=3, heads=8, kv_heads=4, vocab=64, tied=False, head_dim=3)
CONFIG = dataclasses.replace(BASE, hidden=24, ffn=16, layers=3, heads=8, kv_heads=4, vocab=64, head_dim=3)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 2), (2, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_layout_is_megatrons(tensor: int, pipeline: int, tied: bool) -> None:
    shape, config = dataclasses.replace(SHAPE, tied=tied), dataclasses.replace(CONFIG, tied=tied)
    sizes = ParallelSizes(tensor * pipeline, tensor=tensor, pipeline=pipeline)
    for rank in range(sizes.world):
        at = sizes.coordinates(rank)
        ours = set(megatron_pieces(shape, tensor, pipeline, at.tensor, at.pipeline))
        assert ours == set(shard_map(config, sizes, at))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_chain_and_plan_agree(tensor: int) -> None:
    setup = Setup.make(SHAPE, tensor, 1, torch.device("cpu"))
    setup.copy()
    planned = setup.target.view(torch.int32).clone()
    assert planned.any()
    setup.target.zero_()
    setup.chain()
    assert torch.equal(setup.target.view(torch.int32), planned)
    setup.publish()


def test_table() -> None:
    sources = [list(megatron_pieces(SHAPE, 2, 1, rank, 0)) for rank in (0, 1)]
    plan = plan_block(hold(sources), [fused_pieces(SHAPE, 1, 0), []])
    lines = plan_table(plan, 4, 2 * 4 * 200).splitlines()
    numel = sum(transfer.numel for transfer in plan.transfers)
    assert len(lines) == 4
    assert lines[1].split()[:2] == ["0", str(len(plan.local[0]))]
    assert lines[2].split()[:5] == ["1", "0", "0.0", str(len(plan.messages(200))), f"{numel * 4 / 1e6:.1f}"]
    assert lines[3].startswith(f"{len(plan.transfers)} transfers in ")


def test_buckets_reach_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync that is timed is compared bit by bit with what the other process holds."""
    monkeypatch.setitem(buckets.SHAPES, "tiny", SHAPE)
    record = buckets.run(argparse.Namespace(device="cpu", model="tiny", bucket_mb=1, rounds=1))
    assert record["figures"]["buckets"] == 1
    assert record["figures"]["checked_ms"] > 0
