"""One run of the study: started, waited for, read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prime_megatron.config.load import load_train_config, to_dict
from prime_megatron.errors import ExitCode
from prime_megatron.metrics.jsonl import read_jsonl
from tools.compare_work.arms import BY_NAME
from tools.compare_work.localise import localisation
from tools.compare_work.page import KEPT, keep
from tools.compare_work.process import run_words
from tools.compare_work.record import Localisation, Record, RunSpec

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "examples/starred/prime.yaml"
STAGES = ("rollout", "score", "prm", "advantage", "policy", "critic", "reshard")


class RunFailed(Exception):
    """A run of the study ended in a way that says nothing of its arm."""


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    folder: Path
    """Of the runs' own folders, which are removed once they are recorded."""
    steps: int
    """Of a measured run."""
    trial_steps: int
    shared: tuple[str, ...]
    """Overrides of every run: where the task and its models are, how often is evaluated."""
    limit_s: float
    """Longest that one run may take."""

    def overrides(self, spec: RunSpec) -> list[str]:
        """All of a run's, but for its output folder."""
        return [*self.shared, *spec.overrides, f"run.seed={spec.seed}", f"run.steps={spec.steps}"]


def config_hash(study: Study, spec: RunSpec) -> str:
    """Of the resolved config, without the folder that it writes to. Raises InputError where this version has no such
    settings."""
    settings = to_dict(load_train_config(str(ROOT / CONFIG), [*study.overrides(spec), "run.output_dir=runs/one"]))
    return _digest(json.dumps(settings, sort_keys=True).encode())


def start_hash(files: Sequence[Path]) -> str:
    """Of the data and the models that all runs start from."""
    return _digest(*(path.read_bytes() for path in files))


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:12]


def commit() -> str:
    """Short hash of the checked-out commit, "+" after it where tracked files differ."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return (head or "unknown") + ("+" if changed else "")


def run(study: Study, spec: RunSpec, start: str) -> Record:
    """Run it and read what it wrote; its folder is removed, but for what a report of its arm's last run needs.

    Raises:
        RunFailed: it ended neither after its last step nor by an end of its own (a starved batch).
    """
    folder = study.folder / f"{spec.name}-{_digest(repr(spec).encode())}"
    overrides = [*study.overrides(spec), f"run.output_dir={folder}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    began = time.time()
    words = ["train", str(ROOT / CONFIG), *overrides, "--overwrite"]
    code, cpu_s = run_words(BY_NAME[spec.arm].module, words, log, study.limit_s)
    if code not in (ExitCode.DONE, ExitCode.GAVE_UP):
        raise RunFailed(f"{spec.name} ended with exit code {code}; {log} says why")
    rows = read_jsonl(folder / "metrics.jsonl")
    early = "" if code == ExitCode.DONE else log.read_text(errors="replace").strip().rpartition("\n")[2][:200]
    record = Record(
        kind=spec.kind, arm=spec.arm, seed=spec.seed, steps=spec.steps, overrides=spec.overrides,
        config=config_hash(study, spec), start=start, commit=commit(), began=began, ended=time.time(), cpu_s=cpu_s,
        load=os.getloadavg()[1], **_curves(rows, spec.steps), stage_s=_stages(rows),
        localisation=_localisation(folder, overrides), ended_early=early,
    )  # fmt: skip
    keep(folder, study.folder / KEPT / spec.arm)
    shutil.rmtree(folder)
    log.unlink()
    return record


def _curves(rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Evaluations and the training seconds up to each; a run that ended early keeps its last values."""
    seconds, found = 0.0, []
    for row in rows:
        if row["step"] > 0:
            seconds += row["time/step_s"] - row.get("time/eval_s", 0.0)
        if "eval/accuracy" in row:
            found.append((row["step"], row["eval/sampled_accuracy"], row["eval/accuracy"], seconds))
    every = found[1][0] if len(found) > 1 else steps
    while found[-1][0] < steps:
        found.append((min(found[-1][0] + every, steps), *found[-1][1:]))
    evaluated, sampled, greedy, trained_s = zip(*found, strict=True)
    return {"evaluated": evaluated, "sampled": sampled, "greedy": greedy, "trained_s": trained_s}


def _stages(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        stage: sum(row[f"time/{stage}_s"] for row in rows if row["step"] > 0)
        for stage in STAGES
        if any(f"time/{stage}_s" in row for row in rows if row["step"] > 0)
    }


def _localisation(folder: Path, overrides: list[str]) -> Localisation:
    """None of it where no step's samples were written."""
    samples = folder / "samples.jsonl"
    config = load_train_config(str(ROOT / CONFIG), overrides)
    if not 0 < config.log.samples_every <= config.run.steps or not samples.exists():
        return Localisation(None, None, None, None)
    return localisation(samples, str(config.models.policy.path))
