"""A whole weight sync into another process by shared buckets (rollout.transport bucket: CUDA IPC on a GPU, memory files
on a CPU): fill, hand over, copy into fused tensors, commit. The other process holds the weights and is no engine.

CPU: a Qwen2-like model of 413 MB in fp32. CUDA: the shape of Qwen2.5-7B in bf16. Figures: sync_ms and checked_ms (with
the checksums of every tensor on both sides), wall time, medians; memcpy_ms, the same bytes in one copy;
trainer_extra_mb, what this process holds during a sync beyond its weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prime_megatron import device
from prime_megatron.families.engine_layout import fused_pieces
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.weights.by_bucket import BucketReshard
from prime_megatron.weights.transports import BucketTransport
from tools.benches import common
from tools.benches.reshard import Setup
from tools.benches.reshard_work.shapes import SHAPES

DRIVER = "tools.benches.reshard_work.holder.HolderDriver"
TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py buckets`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=sorted(SHAPES), help="small on cpu, 7b on cuda")
    parser.add_argument("--bucket-mb", type=int, default=256, help="largest bucket, 2**20 bytes")
    parser.add_argument("--rounds", type=int, default=5, help="medians are reported")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    where = common.use_device(args.device)
    shape = SHAPES[args.model or ("7b" if args.device == "cuda" else "small")]
    setup = Setup.make(shape, 1, 1, where)
    dtype, bucket_bytes = setup.source.dtype, args.bucket_mb * 2**20
    settings = DriverSettings(
        model_path="", device=args.device, dtype=str(dtype).removeprefix("torch."), tensor=1, max_tokens=1,
        max_concurrent=1, end_token_ids=(), seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1,
        can_sleep=False, start_timeout_s=TIMEOUT_S, extra=dataclasses.asdict(shape),
    )  # fmt: skip
    sync = BucketReshard([setup.pieces], [0], group=None, me=0, bucket_bytes=bucket_bytes, dtype=dtype)
    transport = BucketTransport([fused_pieces(shape, 1, 0)], dtype, 0, TIMEOUT_S)
    with tempfile.TemporaryDirectory() as folder:
        engine = ProcessEngine(
            Member(0, 1, 0, 0, None),
            settings,
            Limits(0, TIMEOUT_S, TIMEOUT_S, TIMEOUT_S),
            lambda: EngineProcess(DRIVER, settings, {}, Path(folder) / "engine.log"),
            transport,
        )
        try:
            figures = {
                "sync_ms": _wall_ms(lambda: sync.send(engine, setup.params, 0), args.rounds),
                "trainer_extra_mb": common.extra_mb(lambda: sync.send(engine, setup.params, 0), where),
                "memcpy_ms": _wall_ms(setup.memcpy, args.rounds),
            }
            transport._check_every = 1
            figures["checked_ms"] = _wall_ms(lambda: sync.send(engine, setup.params, 0), args.rounds)
        finally:
            engine.close()
    figures["buckets"] = len(sync.parts)
    figures["model_mb"] = round(setup.source.numel() * setup.source.element_size() / 1e6, 1)
    return common.line("buckets", where, figures, {})


def _wall_ms(action: Callable[[], None], rounds: int) -> float:
    action()
    seconds = []
    for _ in range(rounds):
        device.synchronize()
        begin = time.perf_counter()
        action()
        device.synchronize()
        seconds.append(time.perf_counter() - begin)
    return common.median_ms(seconds)
