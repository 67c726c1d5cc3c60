"""Weight sync into an engine's fused tensors: the plan's copies against one memcpy of the same bytes, and against the
gather, concatenate, convert, flatten, load chain.

CPU: a Qwen2-like model of 413 MB in fp32, tensor size 2. CUDA: the shape of Qwen2.5-7B in bf16, tensor size 1. All
training shards are in this process. Needs torch alone. Figures: x_memcpy (copies / memcpy), extra_mb (memory above
what both sides hold), speedup_vs_chain, *_ms (medians); checked_sync_ms is a whole sync with its bit-exact check.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor

from prime_megatron.families.engine_layout import fused_pieces, fused_shapes
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.types import Bucket
from prime_megatron.weights.in_place import InPlaceReshard
from prime_megatron.weights.plan import hold, plan_block
from prime_megatron.weights.sync import WeightSync
from tools.benches import common
from tools.benches.reshard_table import plan_table
from tools.benches.reshard_work import chain
from tools.benches.reshard_work.shapes import SHAPES, Shape, megatron_pieces

BUCKET_BYTES = 64 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py reshard`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tensor", type=int, help="training tensor size (2 on cpu, 1 on cuda)")
    parser.add_argument("--engine-tensor", type=int, default=1, help="engine ranks, all filled here")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side, interleaved; medians are reported")
    parser.add_argument("--model", choices=sorted(SHAPES), help="small on cpu, 7b on cuda")
    parser.add_argument("--show-plan", action="store_true", help="print the plan of --model as a table, and end")
    parser.add_argument("--pipeline", type=int, default=1, help="training pipeline size, for --show-plan")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, or with --show-plan print the plan as a table instead."""
    shape = SHAPES[args.model or ("7b" if args.device == "cuda" else "small")]
    tensor = args.tensor or (1 if args.device == "cuda" else 2)
    if args.show_plan:
        show_plan(shape, tensor, args.pipeline, args.engine_tensor)
    where = common.use_device(args.device)
    setup = Setup.make(shape, tensor, args.engine_tensor, where)
    sides = {"memcpy": setup.memcpy, "plan": setup.copy, "chain": setup.chain}
    seconds = common.interleaved(sides, args.rounds, where)
    checked = common.interleaved({"sync": setup.publish}, args.rounds, where)["sync"]
    setup.target.zero_()
    setup.publish()  # raises where a single bit differs
    figures = {
        "x_memcpy": common.ratio(seconds, "plan", "memcpy"),
        "extra_mb": common.extra_mb(setup.copy, where),
        "speedup_vs_chain": common.ratio(seconds, "chain", "plan"),
        "chain_extra_mb": common.extra_mb(setup.chain, where),
        "memcpy_ms": common.median_ms(seconds["memcpy"]),
        "plan_ms": common.median_ms(seconds["plan"]),
        "chain_ms": common.median_ms(seconds["chain"]),
        "checked_sync_ms": common.median_ms(checked),
        "model_mb": round(setup.source.numel() * setup.source.element_size() / 1e6, 1),
        "copies": len(setup.transport.local),
    }
    return common.line("reshard", where, figures, {})


def show_plan(shape: Shape, tensor: int, pipeline: int, engine: int) -> NoReturn:
    """Print the plan of one block of ranks, each filling one engine rank in turn, and end without a record."""
    begin = time.perf_counter()
    destinations = [(stage, rank) for stage in range(pipeline) for rank in range(tensor)]
    sources = [list(megatron_pieces(shape, tensor, pipeline, rank, stage)) for stage, rank in destinations]
    shards = [fused_pieces(shape, engine, rank) for rank in range(engine)]
    plan = plan_block(hold(sources), [shards[place % engine] for place in range(len(destinations))])
    seconds = time.perf_counter() - begin
    print(
        f"TP{tensor} x PP{pipeline} -> engine TP{engine}, bf16, buckets of {BUCKET_BYTES / 1e6:.1f} MB; {seconds:.2f} s"
    )
    print(plan_table(plan, 2, BUCKET_BYTES))
    raise SystemExit(0)


@dataclass
class Engine:
    """The targets, as an engine offers them."""

    targets: Mapping[str, Tensor]

    def named_targets(self) -> Mapping[str, Tensor]:
        return self.targets

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        assert not list(buckets)

    def wake(self, tags: Collection[str]) -> None:
        pass


@dataclass
class Setup:
    """Both sides in memory; each side's tensors are views of one flat tensor."""

    shape: Shape
    pieces: list[ShardSlice]
    source: Tensor
    params: dict[tuple[int, str], Tensor]
    """By (tensor-parallel rank, name): the ranks stand in for the chunks of one process."""
    target: Tensor
    targets: dict[str, Tensor]
    transport: InPlaceReshard
    sync: WeightSync

    @classmethod
    def make(cls, shape: Shape, tensor: int, engine: int, where: torch.device) -> Setup:
        """Random weights on the training side, zeros in the engine."""
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        pieces = [
            dataclasses.replace(piece, chunk=rank)
            for rank in range(tensor)
            for piece in megatron_pieces(shape, tensor, 1, rank, 0)
        ]
        ends: dict[tuple[int, str], tuple[int, ...]] = {}
        for piece in pieces:
            stops = tuple(stop for _, stop in piece.local)
            at = (piece.chunk, piece.param)
            ends[at] = tuple(map(max, stops, ends.get(at, stops)))
        source = torch.empty(sum(map(prod, ends.values())), dtype=dtype, device=where)
        if where.type == "cuda":
            # torch._foreach_copy_ of bfloat16 rewrites the bits of a NaN there, which the comparison would tell.
            source.normal_()
        else:
            source.view(torch.int32).random_()  # any bits, NaN too
        wants = [
            dataclasses.replace(piece, param=f"{rank}/{piece.param}")
            for rank in range(engine)
            for piece in fused_pieces(shape, engine, rank)
        ]
        shapes = {
            f"{rank}/{name}": size for rank in range(engine) for name, size in fused_shapes(shape, engine).items()
        }
        target = torch.zeros(sum(map(prod, shapes.values())), dtype=dtype, device=where)
        plan = plan_block(hold([pieces]), [wants])
        transport = InPlaceReshard(plan, group=None, me=0, bucket_bytes=BUCKET_BYTES, dtype=dtype)
        params, targets = dict(_views(source, ends)), dict(_views(target, shapes))
        sync = WeightSync(Engine(targets), transport, lambda: params, check_every=1)
        return cls(shape, pieces, source, params, target, targets, transport, sync)

    def memcpy(self) -> None:
        """The same bytes, contiguous to contiguous (what the C library's memcpy does on a CPU)."""
        count = min(self.source.numel(), self.target.numel())
        target, source = self.target[:count], self.source[:count]
        if target.is_cuda:
            target.copy_(source)
        else:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), count * source.element_size())

    def copy(self) -> None:
        """The plan's copies."""
        self.transport.run(self.params, self.targets)

    def publish(self) -> None:
        """A whole sync, checked bit by bit."""
        self.sync.publish(0)

    def chain(self) -> None:
        """The common way; only into an unsplit engine."""
        targets = {name.removeprefix("0/"): tensor for name, tensor in self.targets.items() if name.startswith("0/")}
        chain.run(self.shape, self.params, targets, BUCKET_BYTES)


def _views(flat: Tensor, shapes: Mapping[Any, tuple[int, ...]]) -> Iterator[tuple[Any, Tensor]]:
    offset = 0
    for name, shape in shapes.items():
        yield name, flat[offset : offset + prod(shape)].view(shape)
        offset += prod(shape)
