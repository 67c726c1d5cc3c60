"""A study of two steps, really run: both arms end as records with curves, seconds and credit, and are not run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.starred import make_task as starred
from tools.compare_work.arms import BY_NAME
from tools.compare_work.one_run import Study, run
from tools.compare_work.page import write_page
from tools.compare_work.record import Record, Records, RunSpec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An untrained model, so that every prompt is kept; a few prompts."""
    folder = tmp_path_factory.mktemp("study")
    for name, count in (("NUM_TRAIN", 40), ("NUM_EVAL", 8), ("NUM_SFT", 4)):
        setattr(starred, name, count)
    starred.make(folder, seed=0)
    shared = (
        f"models.policy.path={folder}/model",
        f"data.train=[{folder}/train.jsonl]",
        f"data.eval=[{folder}/eval.jsonl]",
        "rollout.prompts_per_step=4",
        "rollout.oversample=1",
        "rollout.filter.lower=0",
        "rollout.filter.upper=1",
        "eval.every=1",
        "log.samples_every=1",
    )
    return Study(folder / "runs", 2, 2, shared, 200.0)


def first_trial(name: str) -> RunSpec:
    return RunSpec("trial", name, 0, 2, BY_NAME[name].trials[0])


def test_two_arms_end_as_records(study: Study, tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl")
    for name in ("local_credit", "truth"):
        records.add(run(study, first_trial(name), "start"))
    local, truth = Records(tmp_path / "runs.jsonl").all
    for record in (local, truth):
        assert isinstance(record, Record) and records.find(record.spec) is not None
        assert record.evaluated == (0, 1, 2) and len(record.sampled) == len(record.greedy) == 3
        assert 0 == record.trained_s[0] < record.trained_s[1] < record.trained_s[2] < record.ended - record.began
        assert {"rollout", "score", "prm", "policy"} <= record.stage_s.keys() and record.cpu_s > 1
        assert record.ended_early == ""
        assert record.localisation.advantage_cosine is None, "an untrained model has no line right"
    assert local.config != truth.config
    kept = {path.parent.name for path in study.folder.rglob("metrics.jsonl")}
    assert kept == {"local_credit", "truth"} and [path.name for path in study.folder.iterdir()] == ["last"]
    write_page(study.folder)
    assert "truth" in (study.folder / "report.html").read_text(encoding="utf-8")
