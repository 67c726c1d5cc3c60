"""`prime-megatron rehearse`: what Megatron builds is what the memory model says, to the byte, in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from prime_megatron.families import count
from prime_megatron.weights import plan as weight_plan
from tests.e2e.test_layouts import LAYOUTS
from tests.support.models import make_model as make_tiny
from tests.support.public_models import make_folder
from tests.support.toy import make_model, settings

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPERTS: dict[str, tuple[int, dict[str, Any]]] = {
    "expert2-pp2": (4, {"expert": 2, "pipeline": 2}),
    "tp2-expert2": (4, {"tensor": 2, "expert": 2, "sequence": True}),
    "tp2": (2, {"tensor": 2, "sequence": True}),
    "tp2-shared-experts": (2, {"tensor": 2, "expert_tensor": 2, "sequence": True}),
    "tp4-expert2-shared-experts": (4, {"tensor": 4, "expert": 2, "expert_tensor": 2, "sequence": True}),
}


def config_of(folder: Path, model: str, dtype: str, parallel: dict[str, Any]) -> str:
    """A config file of a toy run."""
    values = settings(model, "prompts.jsonl", folder / "out", models={"dtype": dtype}, parallel=parallel)
    path = folder / "run.yaml"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    make_tiny(folder / "experts", "qwen3_moe")
    return {"dense": make_model(folder / "dense"), "experts": str(folder / "experts")}


@pytest.mark.parametrize(
    ("model", "name"), [*(("dense", name) for name in LAYOUTS), *(("experts", name) for name in EXPERTS)]
)
def test_toys_in_every_layout(
    model: str, name: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All ranks: counted, planned, and an update whose calls agree in every group."""
    world, parallel = (LAYOUTS | EXPERTS)[name]
    # Both compute dtypes over the layouts.
    dtype = "bfloat16" if len(name) % 2 else "float32"
    path = config_of(tmp_path, models[model], dtype, parallel)
    assert main(["rehearse", path, "--processes", str(world), "--ranks", "all"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "differs" not in out and out.count("the same") >= 2
    assert "each written once" in out and "calls agree" in out


@pytest.mark.parametrize(
    ("example", "policy", "prm", "ranks", "stages"),
    [
        ("qwen2.5_math_7b", "Eurus-2-7B-SFT", None, 8, 1),
        ("qwen2.5_72b", "Qwen2.5-72B-Instruct", "Qwen2.5-7B-Instruct", 128, 4),
        ("qwen3_30b_a3b", "Qwen3-30B-A3B", None, 32, 2),
    ],
)
def test_gpu_examples_at_full_size(
    example: str,
    policy: str,
    prm: str | None,
    ranks: int,
    stages: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = [f"models.policy.path={make_folder(tmp_path, policy)}"]
    overrides += [] if prm is None else [f"models.prm.path={make_folder(tmp_path, prm)}"]
    assert main(["rehearse", str(EXAMPLES / example / "prime.yaml"), *overrides, "--no-update"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.endswith("the same")]
    assert "differs" not in out and "each written once" in out
    # Every rank of the job is of one of the kinds, for each of the models.
    models = 3 if prm else 2
    assert sum(int(row[2]) for row in rows) == models * ranks
    assert {row[1] for row in rows} == {str(stage) for stage in range(stages)}


def test_a_memory_model_that_forgets_a_bias_is_told(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules_of = count.rules_of
    monkeypatch.setattr(
        count, "rules_of", lambda *args: [rule for rule in rules_of(*args) if not rule.param.endswith("qkv.bias")]
    )
    path = config_of(tmp_path, models["dense"], "bfloat16", {})
    assert main(["rehearse", path, "--no-update"]) == 1
    told = capsys.readouterr()
    assert "differs" in told.out and "the memory model says" in told.err and told.err.count("\n") == 1


def test_a_plan_that_leaves_a_piece_out_is_told(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb looks at the plan that a run makes: here one that forgets the last of what it copies."""
    merge = weight_plan.merge
    monkeypatch.setattr(weight_plan, "merge", lambda copies: list(merge(copies))[:-1])
    path = config_of(tmp_path, models["dense"], "bfloat16", {})
    assert main(["rehearse", path, "--no-update"]) == 1
    assert "elements are written by nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["parallel.tensor=3"], "does not divide"),
        (["models.policy.path=nowhere"], "nowhere: no such model folder"),
        (["--processes", "0"], "--processes: expected"),
        (["--micro-batches", "0"], "--micro-batches: expected"),
    ],
)
def test_bad_input_is_one_line(
    changes: list[str], told: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_of(tmp_path, models["dense"], "bfloat16", {})
    assert main(["rehearse", path, *changes]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
