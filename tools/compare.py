#!/usr/bin/env python3
"""PRIME against outcome-only RLOO on the quick start's task: a plot and a table in docs/measurements.md.

    python tools/compare.py [--seeds 0 1 2] [--steps N] [key=value ...]

Runs `prime-megatron train examples/quickstart/prime.yaml` for every seed, as it stands and with
advantage.process_weight=0, from the same warmed-up model; evaluates the held-out prompts every few steps.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.metrics.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "examples/quickstart/prime.yaml"
BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
METHODS = {"PRIME": (), "RLOO, outcome only": ("advantage.process_weight=0.0",)}


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy over steps, and what the run cost."""

    steps: list[int]
    accuracy: list[float]
    seconds: float
    prm_pair_accuracy: float | None

    def reaches(self, accuracy: float) -> int | None:
        """First evaluated step at or above an accuracy."""
        return next((step for step, value in zip(self.steps, self.accuracy, strict=True) if value >= accuracy), None)


def run(method: str, seed: int, output: Path, overrides: list[str]) -> Curve:
    """One training run, its progress on the terminal."""
    folder = output / f"{method.split(',')[0].lower()}-{seed}"
    command = [sys.executable, "-W", "ignore", "-m", "prime_megatron", "train", CONFIG, f"run.seed={seed}"]
    command += [f"run.output_dir={folder}", "checkpoint.export_final=false", "checkpoint.save_final=false"]
    print(f"== {method}, seed {seed}", flush=True)
    subprocess.run([*command, *METHODS[method], *overrides, "--overwrite"], cwd=ROOT, check=True)
    rows = read_jsonl(ROOT / folder / "metrics.jsonl")
    evaluated = [row for row in rows if "eval/accuracy" in row]
    pairs = [row["prm/pair_accuracy"] for row in rows if isinstance(row.get("prm/pair_accuracy"), float)]
    return Curve(
        steps=[row["step"] for row in evaluated],
        accuracy=[row["eval/accuracy"] for row in evaluated],
        seconds=sum(row["time/step_s"] - row.get("time/eval_s", 0.0) for row in rows if row["step"] > 0),
        prm_pair_accuracy=statistics.fmean(pairs[-10:]) if pairs else None,
    )


def plot(curves: dict[str, dict[int, Curve]], path: Path) -> None:
    """Thin lines for seeds, a thick one for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.0))
    for (method, by_seed), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        runs = list(by_seed.values())
        for curve in runs:
            axes.plot(curve.steps, curve.accuracy, color=colour, alpha=0.3, linewidth=1)
        mean = [statistics.fmean(values) for values in zip(*(curve.accuracy for curve in runs), strict=True)]
        axes.plot(runs[0].steps, mean, color=colour, linewidth=2.5, label=f"{method} (mean of {len(runs)} seeds)")
    axes.set_xlabel("step")
    axes.set_ylabel("held-out accuracy, greedy")
    axes.set_ylim(0.0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def table(curves: dict[str, dict[int, Curve]], command: str) -> str:
    """The markdown between the markers."""
    prime, rloo = curves["PRIME"], curves["RLOO, outcome only"]
    target = {seed: curve.accuracy[-1] for seed, curve in rloo.items()}
    lines = [
        f"Command: `{command}`; commit {commit()}; {platform.machine()} CPU, {platform.system()}, "
        f"Python {platform.python_version()}.",
        "",
        "| seed | start | RLOO final | PRIME final | steps to RLOO's final: RLOO | PRIME | seconds RLOO | PRIME "
        "| PRM pair accuracy, last 10 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, curve in prime.items():
        other, pair = rloo[seed], curve.prm_pair_accuracy
        lines.append(
            f"| {seed} | {curve.accuracy[0]:.3f} | {other.accuracy[-1]:.3f} | {curve.accuracy[-1]:.3f} "
            f"| {other.reaches(target[seed])} | {curve.reaches(target[seed]) or 'not reached'} "
            f"| {other.seconds:.0f} | {curve.seconds:.0f} | {'-' if pair is None else f'{pair:.3f}'} |"
        )
    means = [statistics.fmean(curve.accuracy[-1] for curve in part.values()) for part in (rloo, prime)]
    lines.append(f"\nMean final accuracy: RLOO {means[0]:.3f}, PRIME {means[1]:.3f}.")
    areas = [statistics.fmean(statistics.fmean(c.accuracy) for c in part.values()) for part in (rloo, prime)]
    lines.append(f"Mean over all evaluations (area under the curve): RLOO {areas[0]:.3f}, PRIME {areas[1]:.3f}.")
    lines.append("\n![held-out accuracy over steps](compare.png)")
    return "\n".join(lines)


def commit() -> str:
    """Short hash of the checked-out commit."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def insert(document: Path, text: str) -> None:
    """Replace what stands between the markers, or append markers and text."""
    old = document.read_text() if document.exists() else "# Measurements\n"
    if BEGIN in old:
        head, rest = old.split(BEGIN, 1)
        tail = rest.split(END, 1)[1]
    else:
        head, tail = f"{old.rstrip()}\n\n## PRIME against outcome-only RLOO\n\n", "\n"
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=4, help="steps between evaluations")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    overrides = [f"eval.every={options.every}", *options.overrides]
    curves = {
        method: {seed: run(method, seed, options.output, overrides) for seed in options.seeds} for method in METHODS
    }
    documents = ROOT / "docs"
    documents.mkdir(exist_ok=True)
    plot(curves, documents / "compare.png")
    text = table(curves, " ".join(["make compare", *sys.argv[1:]]))
    insert(documents / "measurements.md", text)
    print(text)


if __name__ == "__main__":
    main()
