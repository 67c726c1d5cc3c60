"""Conversion of a synthetic model: memory above the interpreter's own, and time against safetensors on the same bytes.

The base reads every tensor of the same folder through safetensors and writes it through safetensors, one file at a
time, as a plain copy would. Both sides run in processes of their own, alternately; wall clock, page cache warm for
both. `peak_mb` is the most resident memory (10^6 bytes) above what the process held once its imports were done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tools.benches import common

HIDDEN, FFN, VOCAB = 2048, 5632, 32768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py convert`."""
    parser.add_argument("--gb", type=float, default=4.0, help="size of the model, 10^9 bytes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both directions. `to_megatron_ratio` and `to_hf_ratio` are seconds over the copy's, paired by round."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        num_bytes = write_model(root / "model", args.gb)
        seconds: dict[str, list[float]] = {"copy": [], "to_megatron": [], "to_hf": []}
        peaks: dict[str, list[float]] = {name: [] for name in seconds}
        for _ in range(args.rounds):
            for side in ("copy", "to_megatron", "to_hf"):
                target = {"copy": "copied", "to_megatron": "checkpoint", "to_hf": "exported"}[side]
                shutil.rmtree(root / target, ignore_errors=True)
                spent_s, peak_mb = _apart(side, root)
                seconds[side].append(spent_s)
                peaks[side].append(peak_mb)
    figures = {
        "bytes": num_bytes,
        "to_megatron_ratio": common.ratio(seconds, "to_megatron", "copy"),
        "to_hf_ratio": common.ratio(seconds, "to_hf", "copy"),
        "to_megatron_s": round(statistics.median(seconds["to_megatron"]), 2),
        "to_hf_s": round(statistics.median(seconds["to_hf"]), 2),
        "to_megatron_peak_mb": round(max(peaks["to_megatron"]), 1),
        "to_hf_peak_mb": round(max(peaks["to_hf"]), 1),
    }
    peers = {"copy_s": round(statistics.median(seconds["copy"]), 2), "copy_peak_mb": round(max(peaks["copy"]), 1)}
    return common.line("convert", torch.device("cpu"), figures, peers, ("safetensors", "megatron-core"))


def _apart(side: str, root: Path) -> tuple[float, float]:
    """(seconds, peak in MB) of one side in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_side, args=(side, str(root), send))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return float(result[0]), float(result[1])


def _side(side: str, folder: str, send: Any) -> None:
    torch.set_num_threads(1)
    root = Path(folder)
    from prime_megatron.convert.to_hf import MegatronToHf
    from prime_megatron.convert.to_megatron import HfToMegatron

    def nothing(num_bytes: int) -> None:
        """No progress to show."""

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = common._status_bytes("VmRSS")
    begin = time.perf_counter()
    if side == "copy":
        _copy(root / "model", root / "copied")
    elif side == "to_megatron":
        HfToMegatron(root / "model", root / "checkpoint", None).run(nothing)
    else:
        MegatronToHf(root / "checkpoint", root / "exported", None, None).run(nothing)
    send.send((time.perf_counter() - begin, (common._status_bytes("VmHWM") - before) / 1e6))


def _copy(source: Path, target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def write_model(folder: Path, gb: float) -> int:
    """A Qwen2 of about that size in bfloat16, in files of at most 1 GB; returns its bytes."""
    from prime_megatron.families.folder import SafetensorsStream, TensorSpec, split_files, write_index
    from prime_megatron.families.megatron_layout import shard_map
    from prime_megatron.families.read import read_config
    from prime_megatron.mcore.weights import file_names
    from prime_megatron.parallel.topology import ParallelSizes

    per_layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": max(1, round((gb * 1e9 - 4 * VOCAB * HIDDEN) / per_layer)),
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes = ParallelSizes(world=1)
    pieces = shard_map(read_config(folder), sizes, sizes.coordinates(0))
    shapes = {piece.hf_name: piece.hf_shape for piece in pieces}
    specs = [TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    files = file_names(split_files(specs, 10**9))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(max(HIDDEN * FFN, VOCAB * HIDDEN), generator=generator).to(torch.bfloat16)
    for file, listed in files.items():
        stream = SafetensorsStream(folder / file, listed)
        for spec in listed:
            stream.write(spec.name, noise[: spec.nbytes // 2].reshape(spec.shape))
        stream.close()
    if len(files) > 1:
        write_index(folder, files)
    return sum(spec.nbytes for spec in specs)
