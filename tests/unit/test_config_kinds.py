"""What a kind of PRM does not have is refused in one line that says what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from prime_megatron.config import PrmConfig, TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.errors import InputError
from tests.support import toy
from tests.support.toy import merge

HEAD: dict[str, Any] = {"prm": {"kind": "head", "loss": "prefix_ce"}}
TEACHER: dict[str, Any] = {"prm": {"kind": "teacher"}, "models": {"teacher": "t"}}
RLSD: dict[str, Any] = {"prm": {"kind": "teacher", "teacher": {"mode": "rlsd"}}, "advantage": {"whiten": False}}
BASE: dict[str, Any] = {
    "run": {"output_dir": "o", "steps": 1},
    "models": {"policy": {"path": "m"}},
    "data": {"train": ["a.jsonl"]},
}


def config(*layers: dict[str, Any]) -> TrainConfig:
    whole = BASE
    for layer in layers:
        whole = merge(whole, layer)
    return TrainConfig.model_validate_json(json.dumps(whole))


@pytest.mark.parametrize("layer", [HEAD, TEACHER, RLSD, merge(TEACHER, {"prm": {"update": "none"}})])
def test_each_kind_passes(layer: dict[str, Any]) -> None:
    assert check_train_config(config(layer)) == ()


def test_without_process_rewards_the_kind_does_not_matter() -> None:
    off = {"advantage": {"process_weight": 0.0}}
    check_train_config(config({"prm": {"kind": "teacher"}}, off))
    check_train_config(config({"prm": {"kind": "head"}}, off))


@pytest.mark.parametrize(
    ("layer", "over", "said"),
    [
        ({}, {"prm": {"loss": "prefix_ce"}}, "set kind to head, or loss to ce"),
        ({}, {"models": {"teacher": "t"}}, "models.teacher: is read by prm.kind teacher only"),
        (HEAD, {"prm": {"teacher": {"clip": 0.1}}}, "prm.teacher: is read by prm.kind teacher only"),
        (HEAD, {"prm": {"loss": "ce"}}, "has none; set loss to prefix_ce or last_ce"),
        (HEAD, {"prm": {"loss": "dpo", "update": "reverse"}}, "has none; set loss to prefix_ce or last_ce"),
        (HEAD, {"prm": {"loss": "bon_acc", "update": "reverse"}}, "has none; set loss to prefix_ce or last_ce"),
        (HEAD, {"prm": {"ratio_floor": 0.05}}, "set ratio_floor to 0"),
        (HEAD, {"prm": {"reference": "policy"}}, "prm.kind head has none; leave it out"),
        (HEAD, {"models": {"reference": "r"}}, "models.reference: is an implicit PRM's denominator"),
        (HEAD, {"advantage": {"estimator": "prime_value"}}, "set kind to implicit, or another estimator"),
        (HEAD, {"advantage": {"estimator": "spro"}}, "set kind to implicit, or another estimator"),
        (HEAD, {"advantage": {"estimator": "prefix_td"}}, "set kind to implicit, or another estimator"),
        (HEAD, {"prm": {"loss": "prefix_value"}}, "has none; set loss to prefix_ce or last_ce"),
        (HEAD, {"prm": {"health": {"every": 5}}}, "watches the log-ratios of an implicit PRM"),
        (HEAD, {"prm": {"update": "none", "passes": 2}}, "passes of a PRM that does not learn"),
        (TEACHER, {"models": {"teacher": None}}, "models.teacher: is missing"),
        (TEACHER, {"models": {"prm": {"path": "p"}}}, "name it as models.teacher"),
        (TEACHER, {"models": {"reference": "r"}}, "models.reference: is an implicit PRM's denominator"),
        (TEACHER, {"prm": {"passes": 2}}, "prm.passes: 2 is of a PRM that learns"),
        (TEACHER, {"prm": {"update": "before"}}, "prm.update: before is of a PRM that learns"),
        (TEACHER, {"prm": {"loss": "ce_intercept"}}, "prm.loss: ce_intercept is of a PRM that learns"),
        (TEACHER, {"prm": {"granularity": "whole"}}, "prm.granularity: whole shapes process rewards"),
        (TEACHER, {"prm": {"use_gt": True}}, "prm.use_gt: True shapes process rewards"),
        (TEACHER, {"prm": {"ratio_floor": 0.05}}, "set ratio_floor to 0"),
        (TEACHER, {"prm": {"teacher": {"late_discount": 0.4}}}, "is read by mode iw_opd"),
        (TEACHER, {"advantage": {"estimator": "prime_value"}}, "set kind to implicit, or another estimator"),
        (TEACHER, {"eval": {"prm_rows": ["r.jsonl"]}}, "this run has no PRM (prm.kind teacher)"),
        (RLSD, {"models": {"teacher": "t"}}, "rlsd copies the policy"),
        (RLSD, {"advantage": {"whiten": True}}, "set whiten to false"),
        (RLSD, {"advantage": {"outcome_weight": 0.0}}, "weighs the outcome's advantage"),
        (RLSD, {"advantage": {"process_weight": 2.0}}, "whose share is prm.teacher.mix; set it to 1"),
        (RLSD, {"policy": {"kl_place": "reward", "kl_coef": 0.1}}, "set it to loss or none"),
        (RLSD, {"prm": {"teacher": {"truth_text": "the answer"}}}, "has no {truth}"),
    ],
)  # fmt: skip
def test_refused(layer: dict[str, Any], over: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        check_train_config(config(layer, over))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_implicit_prm_alone_has_no_head() -> None:
    values = {
        "run": {"output_dir": "o", "steps": 1},
        "model": "m",
        "data": {"train": ["a.jsonl"]},
        "prm": {"loss": "last_ce"},
    }
    with pytest.raises(InputError, match="set it to ce, or train the head in a run"):
        check_stage_config(PrmConfig.model_validate_json(json.dumps(values)))


def test_a_frozen_head_without_a_folder_is_warned_of() -> None:
    (line,) = check_train_config(config(HEAD, {"prm": {"update": "none"}}))
    assert "never learns rewards nothing" in line


def test_validate_knows_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory is a frozen model's; one with other tokens is refused by name."""
    model = toy.make_model(tmp_path / "model", hidden=32, layers=2)
    teacher = toy.make_model(tmp_path / "teacher", hidden=48, layers=2)
    settings = merge(
        toy.settings(model, toy.make_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out"),
        {"prm": {"kind": "teacher"}, "models": {"teacher": teacher}},
    )
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert main(["validate", str(tmp_path / "run.json")]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("#   teacher") and "frozen: weights" in line]
    assert "#   prm" not in said and "PRM updates" not in said
    assert (
        main(["validate", str(tmp_path / "run.json"), "prm.kind=head", "prm.loss=prefix_ce", "models.teacher=none"])
        == 0
    )
    assert "#   prm" in (head := capsys.readouterr().out) and "#   reference" not in head
    text = (tmp_path / "teacher" / "tokenizer.json").read_text()
    (tmp_path / "teacher" / "tokenizer.json").write_text(text.replace('"a": ', '"ä": '))
    assert main(["validate", str(tmp_path / "run.json")]) == 2
    assert "teacher: its tokenizer is not that of" in (refused := capsys.readouterr().err)
    assert "use a model of the same tokenizer" in refused and refused.count("\n") == 1
