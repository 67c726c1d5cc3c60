"""What every run of the study starts from: the task, two models warmed up on it, for one arm a PRM trained before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.compare_work.one_run import ROOT, start_hash

TASK, POLICY, SMALL = "runs/starred_task", "runs/starred_sft", "runs/starred_sft_small"
FROZEN, FROZEN_DATA = "runs/starred_prm", "runs/starred_prm_data"
FROZEN_PROMPTS, FROZEN_SAMPLES = 1000, 8


def prepare() -> str:
    """Make what is missing; returns the hash of data and models."""
    if not (ROOT / TASK / "small" / "model.safetensors").exists():
        _run("examples/starred/make_task.py")
    sft = ["-m", "prime_megatron", "sft", "examples/starred/sft.yaml", "--overwrite"]
    if not _model(POLICY).exists():
        _run(*sft)
    if not _model(SMALL).exists():
        _run(*sft, f"model={TASK}/small", f"run.output_dir={SMALL}")
    return start_hash([ROOT / TASK / "train.jsonl", ROOT / TASK / "eval.jsonl", _model(POLICY), _model(SMALL)])


def prepare_frozen() -> None:
    """Make the PRM that does not learn: on graded answers of the policy as it starts, where it is missing."""
    if _model(FROZEN).exists():
        return
    folder = ROOT / FROZEN_DATA
    folder.mkdir(parents=True, exist_ok=True)
    with (ROOT / TASK / "train.jsonl").open(encoding="utf-8") as rows:
        (folder / "prompts.jsonl").write_text("".join(next(rows) for _ in range(FROZEN_PROMPTS)), encoding="utf-8")
    answers, labelled = f"{FROZEN_DATA}/answers.jsonl", f"{FROZEN_DATA}/labelled.jsonl"
    sampling = ["--n", str(FROZEN_SAMPLES), "--max-tokens", "56"]
    verb = ["-m", "prime_megatron"]
    _run(*verb, "generate", f"{POLICY}/model", f"{FROZEN_DATA}/prompts.jsonl", "--output", answers, *sampling)
    custom = "starred=examples.starred.rewards:starred_lines"
    _run(*verb, "verify", answers, "--output", labelled, "--custom", custom)
    _run(*verb, "prm", "examples/starred/prm.yaml", "--overwrite")


def _model(folder: str) -> Path:
    return ROOT / folder / "model" / "model.safetensors"


def _run(*words: Sequence[str] | str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", *map(str, words)], cwd=ROOT, check=True)
