"""Every family in every layout: logits against transformers, and a 3-step PRIME run against one process.

Tiny random models in float32 on gloo ranks. The models and the runs are those of the tests. The table goes to standard
error, one JSON line to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benches import common
from tests.distributed import mcore_models
from tests.distributed.spawn import run_ranks
from tests.e2e import runs, toy

Layout = dict[str, Any]
LENGTHS = [7, 1, 12, 9, 30]
LAYERS = 6
BOUNDS = {"dense": 1e-6, "moe": 1e-5, "metric": 1e-5}
LAYOUTS: dict[str, tuple[int, Layout]] = {
    "1 process": (1, {}),
    "DP2 distopt overlap": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "TP2": (2, {"tensor": 2}),
    "TP2+SP": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "PP2xVPP2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "CP2 packed": (2, {"context": 2}),
    "EP2": (2, {"expert": 2}),
    "EP2xTP2 (ETP1)": (2, {"expert": 2, "tensor": 2, "expert_tensor": 1, "sequence": True}),
    "PP4 uneven": (4, {"pipeline": 4, "pipeline_layers": (2, 2, 1, 1)}),
    "TP2xPP2+SP": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}
QUICK = ("qwen2", "qwen2_tied", "qwen3_moe"), ("1 process", "TP2+SP", "PP2", "EP2")
RUNS = ("qwen2", "qwen2_tied")
"""Families of the PRIME runs: untied, tied. Experts are not among them: the embedded engine's transformers model keeps
a layer's experts in one tensor, which the reshard does not fill yet."""
SKIP = (*runs.TIMINGS, "engine/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tools/bench.py parity`."""
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK[0])} at {', '.join(QUICK[1])}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure. A row: family, layout, max_logit_difference, max_metric_difference (null: not run)."""
    families, names = QUICK if args.quick else (tuple(mcore_models.FAMILIES), tuple(LAYOUTS))
    layouts = {name: LAYOUTS[name] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        logits = logit_differences(Path(folder), families, layouts)
        metrics = metric_differences(Path(folder), [name for name in RUNS if name in families], layouts)
    rows = [
        {
            "family": family,
            "layout": layout,
            "max_logit_difference": logits.get((family, layout)),
            "max_metric_difference": metrics.get((family, layout)),
        }
        for family in families
        for layout in layouts
        if (family, layout) in logits or (family, layout) in metrics
    ]
    print_table(rows)
    worst = {
        f"max_{kind}": max((row[key] for row in rows if row[key] is not None and _is(row, kind)), default=None)
        for kind, key in (
            ("dense", "max_logit_difference"),
            ("moe", "max_logit_difference"),
            ("metric", "max_metric_difference"),
        )
    }
    figures = {**worst, "bounds": BOUNDS, "rows": rows}
    return common.line("parity", torch.device("cpu"), figures, {}, ("megatron-core", "transformers"))


def _is(row: dict[str, Any], kind: str) -> bool:
    return kind == "metric" or moe(row["family"]) == (kind == "moe")


def moe(family: str) -> bool:
    """Whether the family has experts."""
    return "moe" in family or family == "mixtral"


def fits(family: str, layout: Layout) -> bool:
    """Whether megatron-core runs it: experts need experts, and sequence parallelism beside tensor parallelism."""
    if not moe(family):
        return "expert" not in layout
    return "tensor" not in layout or "sequence" in layout


def logit_differences(
    folder: Path, families: tuple[str, ...], layouts: dict[str, tuple[int, Layout]]
) -> dict[tuple[str, str], float]:
    """max |logit - transformers| by family and layout."""
    expected, folders = {}, {}
    for name in families:
        model = mcore_models.make_model(folder / name, name, num_hidden_layers=LAYERS)
        expected[name] = mcore_models.reference_logits(model, mcore_models.sequences(LENGTHS))
        folders[name] = str(folder / name)
    worst: dict[tuple[str, str], float] = {}
    for world in sorted({size for size, _ in layouts.values()}):
        jobs = [
            (family, label, layout)
            for label, (size, layout) in layouts.items()
            for family in families
            if size == world and fits(family, layout) and "overlap_grad_reduce" not in layout
        ]
        for rank in run_ranks(_logits, world, folders, [(f, lay) for f, _, lay in jobs], timeout_s=1200.0):
            for (family, label, _), found in zip(jobs, rank, strict=True):
                if found is not None:
                    difference = (found - expected[family]).abs().max().item()
                    worst[family, label] = max(worst.get((family, label), 0.0), difference)
    return worst


def _logits(folders: dict[str, str], jobs: list[tuple[str, Layout]]) -> list[torch.Tensor | None]:
    found = []
    for family, layout in jobs:
        topology, chunks = mcore_models.start(layout, folders[family])
        seqs = mcore_models.sequences(LENGTHS)
        found.append(mcore_models.logits(chunks, topology, [seqs[:2], seqs[2:]]))
        mcore_models.restart()
    return found


def metric_differences(
    folder: Path, families: list[str], layouts: dict[str, tuple[int, Layout]]
) -> dict[tuple[str, str], float]:
    """Largest difference of any metric of three steps on the same rollouts, relative to 1 or its size."""
    worst: dict[tuple[str, str], float] = {}
    for family in families:
        base, expected = _record(folder / f"run_{family}", family)
        for world in sorted({size for size, _ in layouts.values()}):
            chosen = {
                label: layout
                for label, (size, layout) in layouts.items()
                if size == world and layout and fits(family, layout)
            }
            settings = [
                toy.merge(base, {"run": {"output_dir": str(folder / family / label)}, "parallel": layout})
                for label, layout in chosen.items()
            ]
            run_ranks(_train_many, world, json.dumps(settings), str(folder / f"{family}_{world}"), timeout_s=1200.0)
            for label, made in zip(chosen, settings, strict=True):
                metrics = runs.read_lines(made, "metrics.jsonl")
                worst[family, label] = max(runs.differences(expected, metrics, SKIP).values())
    return worst


def _record(folder: Path, family: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings that replay a family's judged rollouts, and the metrics of one process on them."""
    folder.mkdir()
    prefix, config = mcore_models.FAMILIES[family]
    model = folder / "model"
    changes = {"vocab_size": 65, "num_hidden_layers": LAYERS, "eos_token_id": 1, "pad_token_id": 0}
    assert prefix
    mcore_models.make_model(model, family, **{**config, **changes})
    toy.make_tokenizer().save_pretrained(model)
    prompts = toy.make_prompts(folder / "prompts.jsonl")
    base = toy.settings(str(model), prompts, folder / "recorded", models={"policy": {"num_mini_batches": 2}})
    _alone(toy.merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = runs.judge(folder / "raw.jsonl", folder / "judged.jsonl")
    base = toy.merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    replayed = toy.merge(base, {"run": {"output_dir": str(folder / "replayed")}})
    _alone(replayed)
    return base, runs.read_lines(replayed, "metrics.jsonl")


def _alone(settings: dict[str, Any]) -> None:
    """A run on one process."""
    run_ranks(_train_many, 1, json.dumps([settings]), f"{settings['run']['output_dir']}.store", timeout_s=300.0)


def _train_many(settings: str, store: str) -> None:
    """Runs one after the other on the same ranks, each with process groups of its own."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    for index, one in enumerate(json.loads(settings)):
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}_{index}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=300),
        )
        with redirect_stdout(sys.stderr):
            assert runs.train_rank(json.dumps(one)) == 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, on standard error."""
    print("| family | layout | max logit difference | max metric difference |\n|---|---|---|---|", file=sys.stderr)
    for row in rows:
        shown = ["-" if row[key] is None else f"{row[key]:.1e}" for key in list(row)[2:]]
        print(f"| {row['family']} | {row['layout']} | {shown[0]} | {shown[1]} |", file=sys.stderr)
