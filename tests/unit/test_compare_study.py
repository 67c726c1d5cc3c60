"""The headline's study: its statistics by hand, what it runs and skips, what it makes of the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples.starred import make_task as starred
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.types import Group, Prompt, Sample
from tools.compare_work.arms import ARMS, BY_NAME, RATES
from tools.compare_work.ceiling import true_rewards
from tools.compare_work.contest import contest
from tools.compare_work.curves import Curve, passage
from tools.compare_work.localise import auc, cosine, localisation
from tools.compare_work.one_run import RunFailed, Study
from tools.compare_work.record import Localisation, Record, Records, RunSpec
from tools.compare_work.report import insert, report
from tools.compare_work.study import SEEDS, TRIAL_SEED, carry_on, chosen, missing
from tools.compare_work.truth import at_answers, centred, right_lines

STUDY = Study(Path("unused"), 60, 40, (), 1.0)
STEPS = (0, 20, 40, 60)


def made(spec: RunSpec, sampled: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4), began: float = 0.0) -> Record:
    """A record as a run would make it: a second of training a step."""
    return Record(
        kind=spec.kind, arm=spec.arm, seed=spec.seed, steps=spec.steps, overrides=spec.overrides, config="c", start="s",
        commit="abc", began=began, ended=began + 100.0, cpu_s=60.0, load=1.0, evaluated=STEPS, sampled=sampled,
        greedy=sampled, trained_s=(0.0, 20.0, 40.0, 60.0), stage_s={"rollout": 30.0},
        localisation=Localisation(0.8, 0.5, 0.4, 0.3), ended_early="",
    )  # fmt: skip


def test_final_area_and_smoothing_by_hand() -> None:
    curve = Curve((0, 10, 20, 30), (0.0, 0.6, 0.3, 0.9))
    assert curve.final == pytest.approx(0.6)
    assert curve.area == pytest.approx((3.0 + 4.5 + 6.0) / 30)
    smooth = curve.smoothed()
    assert smooth.steps == (10, 20)
    assert smooth.values == pytest.approx((0.3, 0.6))


def test_first_passage_by_hand() -> None:
    curve = Curve((0, 10, 20, 30), (0.0, 0.6, 0.3, 0.9))
    assert curve.first_passage(0.3) == pytest.approx(5.0)
    assert curve.first_passage(0.75) == pytest.approx(27.5)
    assert curve.first_passage(0.0) == 0
    assert curve.first_passage(0.91) is None
    assert passage(curve, 0.45) == pytest.approx(15.0)  # of the smoothed one: 0.3 at 10, 0.6 at 20
    assert passage(curve, 0.75) is None  # a single evaluation reached it
    assert curve.at(25) == pytest.approx(0.6) and curve.at(0) == 0.0
    with pytest.raises(ValueError, match="beyond"):
        curve.at(31)


def test_a_contest_by_hand() -> None:
    rloo = made(RunSpec("measured", "rloo", 1, 60, ()))  # smoothed 0.2 at 20, 0.3 at 40, which is its final
    fast = made(RunSpec("measured", "local_credit", 1, 60, ()), (0.1, 0.3, 0.5, 0.7), began=50.0)
    found = contest(fast, rloo)
    assert (found.rloo_steps, found.steps) == (pytest.approx(40.0), pytest.approx(20.0))  # smoothed 0.3 at 20
    assert found.ratio == pytest.approx(0.5) and found.seconds_ratio == pytest.approx(0.5)
    assert contest(replace(fast, began=60.0, ended=160.0), rloo).seconds_ratio is None  # beside it for 40 of 100 s
    assert contest(replace(fast, sampled=(0.1,) * 4), rloo).ratio is None


def test_auc_and_cosine_by_hand() -> None:
    right = np.array([True, True, False, False])
    assert auc(np.array([3.0, 1.0, 1.0, 0.0]), right) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert auc(np.zeros(2), np.array([True, True])) is None
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(24 / 25)
    assert cosine(np.zeros(2), np.ones(2)) is None


def test_the_truth_of_lines() -> None:
    truth = [1, 50, 9, 2, 51, 8]
    assert right_lines([1, 50, 9, 2, 51, 8, 99], truth).tolist() == [True, True]
    assert right_lines([1, 52, 9, 2, 51, 8], truth).tolist() == [False, True]  # another square
    assert right_lines([1, 50, 9, 2], truth).tolist() == [True, False]
    assert centred(np.array([[1.0, 0.0], [0.0, 0.0]])).tolist() == [[0.5, 0.0], [-0.5, 0.0]]
    values = at_answers([0.1, 0.2, 0.3, 0.4], 2)
    assert values[0] == 0.3 and np.isnan(values[1])


def test_credit_is_measured_where_the_digits_are(tmp_path: Path) -> None:
    """Two siblings of a quiz of two lines, the first of them starred; the first sibling has both right."""
    starred.save_model(tmp_path / "model", starred.make_tokenizer(), seed=0)
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    truth = "\n* d7=4\n- a1=9"
    rows = []
    for text, outcome, rewards, advantages in (
        (truth, 1.0, (0.0, 0.0, 0.3, 0.0, 0.0, -0.1), (1.0, 1.0, 3.0, 1.0, 1.0, 4.0)),
        ("\n* d7=5\n- a1=9", 0.0, (9.0, 9.0, -0.2, 9.0, 9.0, 0.1), (9.0, 9.0, -3.0, 9.0, 9.0, 0.0)),
    ):
        row = {"step": 1, "draw": 0, "kind": "trained", "ground_truth": truth, "token_ids": tokenizer.encode(text)}
        rows.append(row | {"outcome": outcome, "process_rewards": rewards, "advantages": advantages})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = localisation(tmp_path / "samples.jsonl", str(tmp_path / "model"))
    # digits: (0.3, right), (-0.1, right), (-0.2, wrong), (0.1, right); the truth is 0.5, 0, -0.5, 0
    assert found.reward_auc == 1.0
    assert found.reward_cosine == pytest.approx((0.15 + 0.1) / (0.15**0.5 * 0.5**0.5))
    assert found.advantage_cosine == pytest.approx(3.0 / (34**0.5 * 0.5**0.5)) == found.starred_cosine

    samples = [Sample(tuple(row["token_ids"]), (), "stop", 0) for row in rows]
    group = Group(Prompt("0", 0, (1, 2), "starred", truth), tuple(samples))
    batch = SimpleNamespace(tokens_T=torch.zeros(16), cu_seqlens=torch.tensor([0, 8, 16]), groups=(group,))
    rewards = true_rewards(batch, tokenizer)
    assert rewards.tolist() == [0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0, -0.5, 0, 0, 0]


def test_every_arm_has_sixteen_trials_four_at_each_rate() -> None:
    for arm in ARMS:
        assert len(set(arm.trials)) == 16, arm.name
        assert [len(arm.at_rate(rate)) for rate in RATES] == [4] * 4, arm.name
    assert TRIAL_SEED not in SEEDS


def runner(counts: list[RunSpec], fails: str = "") -> object:
    """Does runs at once; the last trial of each arm is the best."""

    def run(spec: RunSpec) -> Record:
        counts.append(spec)
        if spec.arm == fails:
            raise RunFailed(f"{spec.name} failed")
        place = BY_NAME[spec.arm].trials.index(spec.overrides)
        return made(spec, (0.1, 0.2 + 0.01 * place, 0.3 + 0.01 * place, 0.4 + 0.01 * place))

    return run


def test_a_study_is_continued_and_skips_what_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first: list[RunSpec] = []
    arms = ["rloo", "local_credit"]
    run = runner(first)
    assert carry_on(Records(path), STUDY, run, available=arms, jobs=2, stop_at=None) == []
    assert len(first) == len(set(first)) == 2 * (16 + 5 + 5)
    assert all(spec.seed == 0 for spec in first[:32]) and all(spec.seed in SEEDS for spec in first[32:])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], *lines[8:40], *lines[41:]]) + "\n")  # a trial and a run are lost
    again: list[RunSpec] = []
    carry_on(Records(path), STUDY, runner(again), available=arms, jobs=1, stop_at=None)
    assert len(again) == 2 and set(again) <= set(first)
    records = Records(path)
    assert chosen(BY_NAME["rloo"], records, STUDY) == BY_NAME["rloo"].trials[-1]
    assert chosen(BY_NAME["rloo"], records, STUDY, 1e-4) == BY_NAME["rloo"].trials[3]
    assert chosen(BY_NAME["default"], records, STUDY) is None
    left = missing(records, STUDY)
    assert left["rloo"] == left["local_credit"] == 0 and left["default"] == 26 and left["gae"] == 21
    carry_on(records, STUDY, runner(again), available=arms, jobs=1, stop_at=None)
    assert len(again) == 2


def test_a_run_that_fails_is_told_and_tried_again_the_next_time(tmp_path: Path) -> None:
    counts: list[RunSpec] = []
    records = Records(tmp_path / "runs.jsonl")
    arms = ["rloo", "local_credit"]
    failures = carry_on(records, STUDY, runner(counts, "local_credit"), available=arms, jobs=1, stop_at=None)
    assert len(failures) == 16 and {record.arm for record in records.all} == {"rloo"}
    carry_on(records, STUDY, runner(counts), available=arms, jobs=1, stop_at=None)
    assert {record.arm for record in records.all} == {"rloo", "local_credit"}
    assert carry_on(records, STUDY, runner(counts), available=["default"], jobs=1, stop_at=0.0) == []


def test_records_are_read_back_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record = made(RunSpec("trial", "rloo", 0, 40, ("a=1",)))
    Records(path).add(record)
    assert Records(path).all == [record]
    path.write_text(path.read_text() + '{"arm": "rloo"}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl:2: not a record"):
        Records(path)


def test_the_report_says_what_was_missed_and_what_is_left(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl")
    carry_on(records, STUDY, runner([]), available=["rloo", "local_credit"], jobs=1, stop_at=None)
    text = report(records, STUDY)
    assert "Best process-reward arm: PRIME, local credit, 1.00 of RLOO's steps (bar: 0.65): missed by 0.35." in text
    assert "not worse." in text and "default 26" in text
    assert "| RLOO, outcome only: lr 0.0004, " in text
    document = tmp_path / "measurements.md"
    document.write_text("head\n<!-- compare: begin -->\nold\n<!-- compare: end -->\ntail\n")
    insert(document, text)
    kept = document.read_text()
    assert kept.startswith("head\n<!--") and kept.endswith("-->\ntail\n") and "old" not in kept
    with pytest.raises(ValueError, match="missing"):
        insert(tmp_path / "runs.jsonl", text)
