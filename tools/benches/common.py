"""What every bench needs: interleaved timing, memory above a baseline, versions, the one JSON line."""

import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from prime_megatron import device


def use_device(name: str) -> torch.device:
    """The device of a run: "cpu" (one thread, CPU seconds) or "cuda" (device events)."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: --device cuda needs a GPU")
    if name == "cpu":
        torch.set_num_threads(1)
    return torch.device(name)


def interleaved(
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    where: torch.device,
    pause_s: float = 0.0,
    *,
    warm_up: bool = True,
    label: str | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, one run of each a round, so that a slow stretch of the machine hits all.

    CPU: this process's CPU seconds. CUDA: device events around the call. pause_s: idle time before each run, for a
    GPU that lowers its clock at its power limit within a tenth of a second of matrix products. warm_up: one run of
    each side before the first round; without it the median has to bear a first run. label: names the rounds on stderr.
    """
    if warm_up:
        _progress(label, "warm-up")
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds):
        _progress(label, f"round {count + 1} of {rounds}")
        for name, run in sides.items():
            time.sleep(pause_s)
            seconds[name].append(_cuda_seconds(run) if where.type == "cuda" else _cpu_seconds(run))
    return seconds


def _progress(label: str | None, what: str) -> None:
    if label is not None:
        print(f"bench: {label}: {what}", file=sys.stderr, flush=True)


def _cpu_seconds(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _cuda_seconds(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def ratio(seconds: dict[str, list[float]], side: str, base: str) -> float:
    """Median over rounds of side / base, each pair from one round."""
    return round(statistics.median(a / b for a, b in zip(seconds[side], seconds[base], strict=True)), 3)


def median_ms(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return round(statistics.median(seconds) * 1e3, 4)


def extra_mb(run: Callable[[], Any], where: torch.device) -> float:
    """Most memory (10^6 bytes) held during a run above what was held before it, the result included.

    CPU: the process's resident high-water mark (Linux), after a warm-up run that lets libraries keep what they keep.
    """
    run()
    gc.collect()
    if where.type == "cuda":
        device.reset_peak_memory()
        before = device.memory_allocated_bytes()
        run()
        device.synchronize()
        return round((device.peak_memory_bytes() - before) / 1e6, 1)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM to the present resident size
    before = _status_bytes("VmRSS")
    run()
    return round((_status_bytes("VmHWM") - before) / 1e6, 1)


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"bench: no {key} in /proc/self/status")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch and the packages that are installed, and the processor's or GPU's name."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["processor"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return found


def line(
    bench: str, where: torch.device, figures: dict[str, Any], peers: dict[str, Any], packages: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The record that a bench returns."""
    return {
        "bench": bench, "device": where.type, "versions": versions(*packages), "figures": figures, "peers": peers,
    }  # fmt: skip


def emit(record: dict[str, Any]) -> None:
    """Print the record as one line."""
    print(json.dumps(record), flush=True)
