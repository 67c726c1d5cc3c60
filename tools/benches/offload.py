"""Offload and reload of a role's weights, gradients and optimizer state, against the machine's own copy.

Our side sends all of a role that has made an update away and brings it back, every byte changed in between and
gradients dropped as they always are; the base copies one buffer of the size of what is copied to a (pinned, on a GPU)
host buffer and back, into memory that was freed and allocated again in between, as the role's is. GB/s are 10^9 bytes
a second of wall clock, over both directions.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from prime_megatron import device
from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.offload import KINDS, OPTIMIZER, PARAMETERS
from prime_megatron.mcore.role import Role
from tools.benches import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py offload`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if device.on_gpu() else "cpu")
    parser.add_argument("--hidden", type=int, default=512, help="of a Qwen2 with a vocabulary of 8,192")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cycles", type=int, default=20, help="for the memory's growth")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. `ratio`: our bandwidth over the machine's own; `growth_mb`: memory gained by the cycles."""
    where = common.use_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder), args.hidden, args.layers)
        topology = start_megatron(ParallelConfig(), seed=0, backend=device.backend_name(), timeout_s=60)
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        role = Role("policy", folder, topology, ParallelConfig(), dtype=dtype, optimizer=OptimizerConfig(lr=1e-5))
    for group in role.optimizer.megatron.chained_optimizers:
        for item in group.optimizer.param_groups:
            for param in item["params"]:
                group.optimizer.state[param] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(param.data),
                    "exp_avg_sq": torch.zeros_like(param.data),
                }
    kinds = dict(role.memory.device_bytes())
    role.memory.reserve()
    num_bytes = kinds[PARAMETERS] + kinds[OPTIMIZER]
    seconds = _measure(role, num_bytes, where, args.rounds)
    before = device_bytes(where)
    for _ in range(args.cycles):
        _cycle(role)
    gc.collect()
    growth = device_bytes(where) - before
    stop_megatron()
    speed = {name: 2 * num_bytes / 1e9 / statistics.median(values) for name, values in seconds.items()}
    figures = {
        "bytes": num_bytes,
        "host_bytes": sum(role.memory.host_bytes().values()),
        **{f"{kind}_bytes": count for kind, count in kinds.items()},
        "gb_per_s": round(speed["ours"], 2),
        "ratio": round(1 / common.ratio(seconds, "ours", "copy"), 3),
        "growth_mb": round(growth / 1e6, 1),
        "cycles": args.cycles,
    }
    return common.line("offload", where, figures, {"copy_gb_per_s": round(speed["copy"], 2)}, ("megatron-core",))


def device_bytes(where: torch.device) -> int:
    """Memory of this process: on the GPU, else resident."""
    return device.memory_allocated_bytes() if where.type == "cuda" else common._status_bytes("VmRSS")


def _cycle(role: Role) -> None:
    role.memory.changed(PARAMETERS, OPTIMIZER)
    role.memory.send(KINDS)
    role.memory.settle()
    role.memory.bring(KINDS)
    role.memory.need(*KINDS)
    device.synchronize()


def _measure(role: Role, num_bytes: int, where: torch.device, rounds: int) -> dict[str, list[float]]:
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=where.type == "cuda")
    block = torch.ones(num_bytes, dtype=torch.uint8, device=where)
    storage = block.untyped_storage()

    def ours() -> None:
        _cycle(role)

    def copy() -> None:
        host.copy_(block, non_blocking=True)
        device.synchronize()
        storage.resize_(0)
        device.empty_cache()
        storage.resize_(num_bytes)
        block.copy_(host, non_blocking=True)
        device.synchronize()

    seconds: dict[str, list[float]] = {"ours": [], "copy": []}
    for index in range(rounds + 1):
        for name, side in (("ours", ours), ("copy", copy)):
            begin = time.perf_counter()
            side()
            if index:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def _write_model(folder: Path, hidden: int, layers: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
