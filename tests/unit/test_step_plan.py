"""The step plan: what each algorithm must run, what is left out, and the verb that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.step.plan import OldLogprobs, Pass, StepPlan, plan_step

MODEL = "models/policy"


def planned(**sections: dict[str, Any]) -> StepPlan:
    models = {"policy": {"path": MODEL}, **sections.pop("models", {})}
    config = {"run": {"output_dir": "out", "steps": 1}, "models": models, "data": {"train": ["x.jsonl"]}, **sections}
    return plan_step(TrainConfig.model_validate(config, strict=False))


def minis(count: int) -> dict[str, Any]:
    return {"policy": {"path": MODEL, "num_mini_batches": count}, "prm": {"num_mini_batches": count}}


def passes_of(plan: StepPlan, role: str) -> dict[str, Pass]:
    return {item.what: item for item in plan.passes if item.role == role}


@pytest.mark.parametrize(
    ("update", "count", "forwards"),
    # policy 3, PRM 3, reference 1; 3/4 old log-probs with four mini-batches; 1 to score with an updated PRM
    [("after", 1, 7.0), ("after", 4, 7.75), ("before", 1, 8.0), ("before", 4, 8.75), ("reverse", 1, 8.0)],
)
def test_floor_of_the_notes(update: str, count: int, forwards: float) -> None:
    assert planned(prm={"update": update}, models=minis(count)).forwards == forwards


@pytest.mark.parametrize(
    ("update", "passes", "forwards"), [("after", 3, 13.0), ("before", 2, 11.0), ("reverse", 4, 17.0)]
)
def test_every_pass_of_the_prm_is_paid_for(update: str, passes: int, forwards: float) -> None:
    plan = planned(prm={"update": update, "passes": passes})
    assert plan.forwards == forwards
    assert f"{passes} times (prm.passes)" in passes_of(plan, "prm")["update"].why


def test_frozen_prm_only_scores() -> None:
    plan = planned(prm={"update": "none"})
    assert plan.forwards == 3 + 1 + 1
    assert set(passes_of(plan, "prm")) == {"scores"}


def test_outcome_only_runs_the_policy_alone() -> None:
    plan = planned(advantage={"process_weight": 0.0})
    assert plan.forwards == 3.0
    assert not plan.prm and not plan.reference
    assert {item.role for item in plan.passes} == {"policy"}


def test_prime_value_needs_the_prm_without_a_process_weight() -> None:
    assert planned(advantage={"process_weight": 0.0, "estimator": "prime_value"}).prm


def test_spro_runs_the_policy_and_its_reference_alone() -> None:
    """The policy before its update, its reference once, its update: 5 F, however many mini-batches; no PRM is built."""
    spro = {"estimator": "spro"}
    for models in ({}, minis(4), {"prm": {"num_mini_batches": 2}}):
        plan = planned(advantage=spro, models=models)
        assert plan.forwards == 5.0 and plan.old_logprobs is OldLogprobs.all and not plan.prm
        assert named(plan) == {"policy": (MODEL, True), "reference": (MODEL, False)}
    assert passes_of(plan, "policy")["old log-probs"].why == "the policy's own process reward"
    assert passes_of(plan, "reference")["log-probs"].why == "denominator of the policy's own reward, once per step"
    # The KL term's reference is the same pass at any temperature, unless the reward's reference is another model.
    kl = planned(advantage=spro, policy=KL, rollout={"sampling": {"temperature": 0.9}})
    assert kl.shared_reference and kl.forwards == 5.0
    other = planned(advantage=spro, policy=KL, models={"reference": "models/other"})
    assert other.forwards == 6.0 and named(other)["policy_reference"] == (MODEL, False)


@pytest.mark.parametrize(("update", "forwards"), [("after", 7.0), ("before", 8.0)])
def test_ipvrm_costs_what_prime_costs(update: str, forwards: float) -> None:
    plan = planned(advantage={"estimator": "prefix_td"}, prm={"loss": "prefix_value", "update": update})
    assert plan.forwards == forwards and set(named(plan)) == {"policy", "prm", "reference"}


def test_gae_adds_the_critic() -> None:
    plan = planned(advantage={"estimator": "gae"})
    assert plan.critic and plan.forwards == 7 + 4
    assert [item.forwards for item in passes_of(plan, "critic").values()] == [1.0, 3.0]


def test_single_mini_batch_has_no_old_logprobs() -> None:
    plan = planned()
    assert plan.old_logprobs is OldLogprobs.none
    skipped = passes_of(plan, "policy")["old log-probs"]
    assert skipped.forwards == 0.0 and "ratio is 1" in skipped.why


def test_more_mini_batches_score_all_but_the_first() -> None:
    plan = planned(models=minis(8))
    assert plan.old_logprobs is OldLogprobs.later
    assert passes_of(plan, "policy")["old log-probs"].forwards == 7 / 8


def test_the_prm_mini_batches_do_not_matter_for_the_policy() -> None:
    models = {"policy": {"path": MODEL}, "prm": {"num_mini_batches": 4}}
    assert planned(models=models).forwards == 7.0


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"prm": {"reference": "policy"}}, "the PRM's reference"),
        ({"policy": {"importance_cap": 2.0}}, "importance weights against the engine"),
        ({"policy": {"kl_place": "reward", "kl_coef": 0.1}}, "KL enters the reward"),
    ],
)
def test_old_logprobs_of_all_tokens_and_why(sections: dict[str, Any], why: str) -> None:
    plan = planned(**sections)
    assert plan.old_logprobs is OldLogprobs.all
    old = passes_of(plan, "policy")["old log-probs"]
    assert (old.forwards, old.why) == (1.0, why)


def test_a_policy_as_reference_saves_the_reference_pass() -> None:
    plan = planned(prm={"reference": "policy"})
    assert not plan.reference and "reference" not in {item.role for item in plan.passes}
    assert plan.forwards == 7.0  # the pass of the frozen reference became that of the old log-probs


def named(plan: StepPlan) -> dict[str, tuple[str, bool]]:
    return {model.role: (model.folder, model.trained) for model in plan.models}


def test_models_of_the_default() -> None:
    assert named(planned()) == {"policy": (MODEL, True), "prm": (MODEL, True), "reference": (MODEL, False)}


def test_models_are_those_of_the_passes() -> None:
    models = {"prm": {"path": "models/small"}, "critic": {"path": "models/value"}}
    assert named(planned(models=models)) == {
        "policy": (MODEL, True), "prm": ("models/small", True), "reference": ("models/small", False),
    }  # fmt: skip
    assert named(planned(models=models, advantage={"process_weight": 0.0})) == {"policy": (MODEL, True)}
    assert named(planned(models=models, advantage={"estimator": "gae"}))["critic"] == ("models/value", True)
    assert named(planned(advantage={"estimator": "gae"}))["critic"] == (MODEL, True)
    assert "reference" not in named(planned(prm={"reference": "policy"}))
    assert named(planned(models={"reference": "models/other"}))["reference"] == ("models/other", False)


def test_a_prm_that_never_learns_is_frozen() -> None:
    assert named(planned(prm={"update": "none"}))["prm"] == (MODEL, False)


def test_a_head_needs_no_reference() -> None:
    plan = planned(prm={"kind": "head", "loss": "prefix_ce"})
    assert plan.forwards == 6.0 and plan.prm and not plan.reference
    assert plan.old_logprobs is OldLogprobs.none
    assert named(plan) == {"policy": (MODEL, True), "prm": (MODEL, True)}
    assert {model.role for model in plan.models if model.value_head} == {"prm"}
    assert named(planned(prm={"kind": "head", "update": "none"}))["prm"] == (MODEL, False)


def test_a_teacher_takes_the_prm_s_place() -> None:
    plan = planned(prm={"kind": "teacher"}, models={"teacher": "models/large"})
    assert plan.forwards == 3 + 1 + 1 and plan.teacher and not plan.prm and not plan.reference
    assert passes_of(plan, "policy")["old log-probs"].why == "what the teacher is compared with"
    assert named(plan) == {"policy": (MODEL, True), "teacher": ("models/large", False)}


def test_a_told_teacher_is_a_copy_of_the_policy_and_has_its_time() -> None:
    sections = {"prm": {"kind": "teacher", "teacher": {"mode": "rlsd", "mix_steps": 30}}}
    plan = planned(**sections)
    assert plan.forwards == 5.0 and "in the first 30 steps" in passes_of(plan, "teacher")["log-probs"].why
    assert named(plan)["teacher"] == (MODEL, False)
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": MODEL}}, "data": {"train": ["x"]}}
    later = plan_step(TrainConfig.model_validate({**values, **sections}, strict=False), taught=False)
    assert later.forwards == 3.0 and later.models == plan.models


def test_a_policy_reference_is_a_model_of_its_own_only_where_no_other_is_the_same() -> None:
    kl = {"kl_place": "loss", "kl_coef": 0.1}
    assert "policy_reference" not in named(planned(policy=kl))
    # At another temperature it is another pass, of the same model.
    assert "policy_reference" not in named(planned(policy=kl, rollout={"sampling": {"temperature": 0.9}}))
    small = planned(policy=kl, models={"prm": {"path": "models/small"}})
    assert named(small)["policy_reference"] == (MODEL, False)
    assert named(planned(policy=kl, advantage={"process_weight": 0.0})) == {
        "policy": (MODEL, True), "policy_reference": (MODEL, False),
    }  # fmt: skip


def test_a_plan_needs_the_policy() -> None:
    config = {"run": {"output_dir": "out", "steps": 1}, "models": {"policy": {}}, "data": {"train": ["x.jsonl"]}}
    with pytest.raises(InputError, match=r"models\.policy\.path: is missing"):
        plan_step(TrainConfig.model_validate(config, strict=False))


KL = {"kl_place": "loss", "kl_coef": 0.1}


def test_kl_shares_the_reference_pass() -> None:
    plan = planned(policy=KL)
    assert plan.policy_reference and plan.shared_reference
    shared = passes_of(plan, "policy reference")["log-probs"]
    assert shared.forwards == 0.0 and "same model" in shared.why
    assert plan.forwards == 7.0


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"sampling": {"temperature": 0.9}}},  # the PRM's reference scores at temperature 1
        {"models": {"reference": "models/other"}},
        {"models": {"prm": {"path": "models/small"}}},
        {"advantage": {"process_weight": 0.0}},  # no PRM, so no reference to share
    ],
)
def test_kl_pays_for_a_pass_of_its_own_where_models_or_temperatures_differ(sections: dict[str, Any]) -> None:
    with_kl, without = planned(policy=KL, **sections), planned(**sections)
    assert with_kl.policy_reference and not with_kl.shared_reference
    assert with_kl.forwards == without.forwards + 1.0


@pytest.mark.parametrize("policy", [{"kl_place": "none", "kl_coef": 0.1}, {"kl_place": "loss", "kl_coef": 0.0}])
def test_no_kl_no_policy_reference(policy: dict[str, Any]) -> None:
    plan = planned(policy=policy)
    assert not plan.policy_reference and plan.forwards == 7.0


CONFIG = """\
run: {output_dir: out, steps: 1}
models: {policy: {path: models/policy}}
data: {train: [x.jsonl]}
rollout: {engine: embedded}
"""


def show(tmp_path: Path, capsys: pytest.CaptureFixture, *overrides: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert main(["plan-step", str(path), *overrides]) == 0
    return capsys.readouterr().out.splitlines()


def test_verb_shows_every_pass_and_the_total(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    *lines, advantages = show(tmp_path, capsys)
    assert advantages.startswith("advantages: fused reward path")
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells[0] == ["role", "what", "cost", "why"]
    lines, models = lines[: lines.index("")], lines[lines.index("") + 1 :]
    cells = cells[: len(lines)]
    expected = [
        ["policy", "old log-probs", "0 F", "skipped: one mini-batch: its ratio is 1 by construction"],
        ["reference", "log-probs", "1 F", "denominator of the implicit reward, once per step"],
        ["prm", "update", "3 F", "forward and backward of every mini-batch"],
        ["prm", "scores", "0 F", "skipped: those of the update's own forward"],
        ["policy", "update", "3 F", "forward and backward of every mini-batch"],
    ]
    assert cells[1:-1] == expected
    assert cells[-1][:2] == ["total", "7 F"]
    column = lines[0].index("why")
    assert all(line[column - 2 : column] == "  " for line in lines)
    assert [line.split()[:3] for line in models] == [
        ["model", "trained", "folder"],
        ["policy", "trained", "models/policy"],
        ["prm", "trained", "models/policy"],
        ["reference", "frozen", "models/policy"],
    ]


def test_verb_takes_overrides(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = show(tmp_path, capsys, "prm.update=before", "models.policy.num_mini_batches=4")
    assert "8.75 F" in lines[lines.index("") - 1] and "0.75 F" in lines[1]


def test_verb_refuses_what_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert main(["plan-step", str(path), "prm.loss=dpo"]) == 2
    assert "prm.update" in capsys.readouterr().err
