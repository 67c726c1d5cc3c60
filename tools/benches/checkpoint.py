"""A save against writing the same bytes once; and what a save in the background costs the step beside it.

figures: bytes of the checkpoint; write_ms, one write and fsync of as many bytes; save_ms, the whole save (gather,
write, hash, fsync, manifest, rename) and save_over_write; snapshot_ms, the time that training stands still when the
save is in the background; step_ms, an update alone, and step_while_saving_ms beside the writer; verify_ms, the check
before a resume. One process; wall clock, medians over rounds that take turns.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prime_megatron import device
from prime_megatron.checkpoint import rng
from prime_megatron.checkpoint.layout import step_folder
from prime_megatron.checkpoint.manifest import damage
from prime_megatron.checkpoint.save import Save, Snapshot
from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.mcore.initialize import start_megatron, stop_megatron
from prime_megatron.mcore.role import Role
from tools.benches import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    where = common.use_device(arguments.device)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-bench-", dir=arguments.folder))
    parallel = ParallelConfig()
    topology = start_megatron(parallel, seed=0, backend=device.backend_name(), timeout_s=600.0)
    try:
        model = write_model(folder / "model", arguments.hidden, arguments.layers)
        role = Role("policy", model, topology, parallel, dtype=torch.float32, optimizer=OptimizerConfig())
        figures = measure(role, folder / "checkpoints", arguments.rounds)
    finally:
        stop_megatron()
        shutil.rmtree(folder)
    return common.line("checkpoint", where, figures, {}, ("megatron-core",))


def write_model(folder: Path, hidden: int, layers: int) -> str:
    """A random Qwen2 as an HF folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=4096, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def measure(role: Role, root: Path, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {
        name: [] for name in ("write", "save", "snapshot", "step", "step_while_saving", "verify")
    }
    update(role)
    num_bytes = 0
    for _ in range(rounds):
        save, made_s = timed(start, role, root, 1)
        num_bytes = save.num_bytes
        seconds["save"].append(made_s + timed(save.write)[1])
        seconds["verify"].append(timed(damage, step_folder(root, 1))[1])
        seconds["write"].append(timed(write_once, root / "once", num_bytes)[1])
        seconds["step"] += [timed(update, role)[1] for _ in range(3)]
        background, snapshot_s = timed(in_background, role, root, 2)
        seconds["snapshot"].append(snapshot_s)
        while not background.done():
            seconds["step_while_saving"].append(timed(update, role)[1])
        background.finish()
        shutil.rmtree(step_folder(root, 1))
        shutil.rmtree(step_folder(root, 2))
    figures: dict[str, Any] = {f"{name}_ms": common.median_ms(values) for name, values in seconds.items() if values}
    ratios = [save / write for save, write in zip(seconds["save"], seconds["write"], strict=True)]
    return {"bytes": num_bytes, "save_over_write": round(statistics.median(ratios), 3)} | figures


def start(role: Role, root: Path, step: int) -> Save:
    return Save(root, Snapshot(step, {}, "", rng.capture()), [role])


def in_background(role: Role, root: Path, step: int) -> Save:
    save = start(role, root, step)
    save.write_in_background()
    return save


def update(role: Role) -> None:
    """What stands for a step: an optimizer update of every parameter."""
    assert role.optimizer is not None
    for chunk in role.chunks:
        for param in chunk.parameters():
            param.main_grad.fill_(1e-3)
    role.optimizer.step()
    device.synchronize()


def write_once(path: Path, num_bytes: int) -> None:
    with path.open("wb") as file:
        file.write(bytes(num_bytes))
        file.flush()
        os.fsync(file.fileno())


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begin
