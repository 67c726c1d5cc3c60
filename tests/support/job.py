"""One row of the parity table, as each rank measures it: a family's logits in a layout, then a PRIME run."""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist

from tests.support import models, runs, toy

LAYERS = 6
LENGTHS = (7, 1, 12, 9, 30)
"""Of the sequences whose logits are compared, in two micro-batches."""
VOCAB = 65
"""The toy tokenizer's, and not a multiple of any tensor-parallel size."""
SKIP = (*runs.TIMINGS, "engine/")
"""The recorded rollouts were made by a policy before its updates, so engine and trainer differ by design."""
RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """A family in a layout (of ``ParallelConfig``); its files lie in ``folder``, the family's in ``family_at``."""

    family: str
    label: str
    layout: dict[str, Any]
    family_at: str
    folder: str
    timeout_s: float
    trains: bool = True
    """Whether there is a PRIME run, too."""

    def result(self) -> dict[str, Any] | None:
        """What ``measure`` found; None: it did not end."""
        path = Path(self.folder) / RESULT
        return json.loads(path.read_text()) if path.exists() else None


def as_text(jobs: list[Job]) -> str:
    """For ``work``, which runs in other processes."""
    return json.dumps([asdict(job) for job in jobs])


def work(text: str, prepare: bool) -> None:
    """Jobs one after the other on the same ranks, each with process groups of its own; told on standard error.

    prepare: make each job's family (``make_family``) instead of measuring. A job that takes longer than its timeout
    ends this process, with a traceback.
    """
    dist.barrier()
    dist.destroy_process_group()
    with os.fdopen(os.dup(2), "w") as console:
        for row in json.loads(text):
            job = Job(**row)
            Path(job.folder).mkdir(parents=True, exist_ok=True)
            with (Path(job.folder) / f"rank{_rank()}.log").open("w") as log:
                os.dup2(log.fileno(), 1)  # what libraries say, too
                os.dup2(log.fileno(), 2)
            faulthandler.dump_traceback_later(job.timeout_s, exit=True, file=console)
            began_s = time.monotonic()
            found = make_family(job) if prepare else measure(job)
            faulthandler.cancel_dump_traceback_later()
            if _rank() == 0:
                (Path(job.folder) / RESULT).write_text(json.dumps(found))
                said = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None) or "made"
                print(
                    f"{job.family}, {job.label}, {time.monotonic() - began_s:.1f} s: {said}", file=console, flush=True
                )


def make_family(job: Job) -> dict[str, Any]:
    """On one process: a random model, transformers' logits of it, rollouts of three steps with outcomes by rule, and
    the metrics of one process on these."""
    at = Path(job.family_at)
    changes = {"vocab_size": VOCAB, "num_hidden_layers": LAYERS, "eos_token_id": 1, "pad_token_id": 0}
    model = models.make_model(at / "model", job.family, **changes)
    toy.make_tokenizer().save_pretrained(at / "model")
    seqs = models.sequences(LENGTHS, VOCAB)
    logits = models.reference_logits(model, seqs)
    if any(getattr(model.config, key, None) for key in ("num_experts", "num_local_experts")):
        model.set_experts_implementation("eager")  # torch's grouped product has no float64
    save_file({"float32": logits, "float64": models.reference_logits(model.double(), seqs)}, at / "logits.safetensors")
    if not job.trains:
        return {}
    base = toy.settings(
        str(at / "model"),
        toy.make_prompts(at / "prompts.jsonl"),
        at / "recorded",
        models={"policy": {"num_mini_batches": 2}},
        policy={"kl_place": "loss", "kl_coef": 0.01, "entropy_coef": 0.01},
    )
    with _process_groups(job, "record"):
        _train(toy.merge(base, {"rollout": {"record": str(at / "raw.jsonl")}}))
    replay = runs.judge(at / "raw.jsonl", at / "judged.jsonl")
    base = toy.merge(base, {"rollout": {"engine": "replay", "replay": replay}})
    (at / "settings.json").write_text(json.dumps(base))
    with _process_groups(job, "replay"):
        _train(_replayed(job))
    return {}


def measure(job: Job) -> dict[str, Any]:
    """max_logit_difference from transformers in float32, max_logit_error from transformers in float64 (the difference
    has the rounding of both); max_metric_difference of three steps from one process, relative to 1 or the value where
    that is larger, with the metric's name; None where this layout is the one process."""
    with _process_groups(job, "logits"):
        difference, error = _logit_differences(job)
    found: dict[str, Any] = {
        "max_logit_difference": difference,
        "max_logit_error": error,
        "max_metric_difference": None,
        "worst_metric": None,
    }
    if not job.layout or not job.trains:
        return found
    base = json.loads((Path(job.family_at) / "settings.json").read_text())
    settings = toy.merge(base, {"run": {"output_dir": f"{job.folder}/run"}, "parallel": job.layout})
    with _process_groups(job, "train"):
        _train(settings)
    if _rank() == 0:
        expected = runs.read_lines(_replayed(job), "metrics.jsonl")
        worst = runs.differences(expected, runs.read_lines(settings, "metrics.jsonl"), SKIP)
        name = max(worst, key=worst.__getitem__)
        found |= {"max_metric_difference": worst[name], "worst_metric": name}
    return found


def _logit_differences(job: Job) -> list[float]:
    """From transformers in float32 and in float64."""
    topology, chunks = models.start(job.layout, f"{job.family_at}/model")
    seqs = models.sequences(LENGTHS, VOCAB)
    logits = models.logits(chunks, topology, [seqs[:2], seqs[2:]])
    expected = load_file(f"{job.family_at}/logits.safetensors")
    worst = torch.zeros(2, dtype=torch.float64)
    if logits is not None:
        worst = torch.stack([(logits - expected[name]).abs().max().double() for name in ("float32", "float64")])
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    models.restart()
    return worst.tolist()


def _replayed(job: Job) -> dict[str, Any]:
    base = json.loads((Path(job.family_at) / "settings.json").read_text())
    return toy.merge(base, {"run": {"output_dir": f"{job.family_at}/replayed"}})


def _train(settings: dict[str, Any]) -> None:
    code = runs.train_rank(json.dumps(settings))
    assert code == 0, f"the run ended with exit code {code}"


@contextmanager
def _process_groups(job: Job, name: str) -> Iterator[None]:
    """Within process groups that nothing else uses; ``name``: of their store in the job's folder."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.folder}/{name}.store",
        rank=_rank(),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=job.timeout_s),
    )
    yield
    if dist.is_initialized():  # the trainer takes its own down
        dist.destroy_process_group()


def _rank() -> int:
    return int(os.environ["RANK"])
