"""Balance of sequence lengths over data-parallel ranks: heaviest rank over the mean, and the time to plan it."""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from prime_megatron.data.balance import balanced_parts, differencing_parts, greedy_parts
from prime_megatron.data.packing import plan_batch

Parts = list[list[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py balance`."""
    parser.add_argument("--sequences", type=int, default=1024, help="sequences of a step")
    parser.add_argument("--ranks", type=int, default=64, help="data-parallel ranks")
    parser.add_argument("--samples", type=int, default=4, help="siblings of a prompt, for the whole plan")
    parser.add_argument("--trials", type=int, default=10, help="draws of the lengths; medians are reported")
    parser.add_argument("--seed", type=int, default=0, help="seed of the lengths")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. max_over_mean is 1 at perfect balance; *_ms are milliseconds."""
    rng = random.Random(args.seed)
    draws = [[_length(rng) for _ in range(args.sequences)] for _ in range(args.trials)]
    methods: dict[str, Callable[[Sequence[int], int], Parts]] = {
        "contiguous": _contiguous,
        "greedy": greedy_parts,
        "differencing": differencing_parts,
        "ours": balanced_parts,
    }
    results = {name: _measure(method, draws, args.ranks) for name, method in methods.items()}
    figures = {"sequences": args.sequences, "ranks": args.ranks, "trials": args.trials, **results.pop("ours")}
    figures |= _whole_plan(draws, args.ranks, args.samples)
    return {
        "bench": "balance",
        "device": "cpu",
        "versions": {"python": platform.python_version()},
        "figures": figures,
        "peers": results,
    }


def _length(rng: random.Random) -> int:
    """Tokens of a prompt and its response: log-normal, median about 800, cut at 4,096."""
    return min(4096, max(16, round(rng.lognormvariate(6.7, 0.6))))


def _contiguous(lengths: Sequence[int], ranks: int) -> Parts:
    bounds = [len(lengths) * rank // ranks for rank in range(ranks + 1)]
    return [list(range(bounds[rank], bounds[rank + 1])) for rank in range(ranks)]


def _measure(method: Callable[[Sequence[int], int], Parts], draws: list[list[int]], ranks: int) -> dict[str, float]:
    ratios, times_ms = [], []
    for lengths in draws:
        start = time.perf_counter()
        parts = method(lengths, ranks)
        times_ms.append(1e3 * (time.perf_counter() - start))
        ratios.append(_ratio([sum(lengths[i] for i in part) for part in parts]))
    return {"max_over_mean": statistics.median(ratios), "plan_ms": statistics.median(times_ms)}


def _whole_plan(draws: list[list[int]], ranks: int, samples: int) -> dict[str, float]:
    """The plan of a step, where siblings must stay together."""
    ratios, times_ms = [], []
    for lengths in draws:
        groups = [lengths[start : start + samples] for start in range(0, len(lengths), samples)]
        start_s = time.perf_counter()
        plan = plan_batch(groups, groups, num_mini_batches=1, dp_size=ranks, max_tokens=16384, max_sequences=None)
        times_ms.append(1e3 * (time.perf_counter() - start_s))
        ratios.append(_ratio(plan.rank_tokens()))
    return {"siblings_max_over_mean": statistics.median(ratios), "siblings_plan_ms": statistics.median(times_ms)}


def _ratio(loads: list[int]) -> float:
    return max(loads) * len(loads) / sum(loads)
