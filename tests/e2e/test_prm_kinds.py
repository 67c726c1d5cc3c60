"""A head is exported, read back, converted and resumed; a frozen PRM keeps its bytes; a copy of the policy survives a
resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from prime_megatron.cli.main import main
from prime_megatron.convert.to_hf import MegatronToHf
from prime_megatron.convert.to_megatron import HfToMegatron
from tests.support.prm_kinds import HEAD, KINDS, RLSD, with_teacher
from tests.support.ranks import run_ranks
from tests.support.resume_runs import assert_same, at, outcome, stopped_at, toy, train
from tests.support.runs import read_lines, train_all
from tests.support.toy import make_model, make_prompts, make_tokenizer, merge, settings

GRADED = {"verify": {"custom": {"math": "examples.custom_reward.rewards:wanted_characters"}}}
"""Fractional outcomes, so that a random model has something to learn."""


def ignore(num_bytes: int) -> None:
    """Progress that no one watches."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders: a head that learns, the same head frozen, a frozen implicit PRM; and the policy's model."""
    folder: Path = tmp_path_factory.mktemp("kinds")
    model, teacher = make_model(folder / "model", hidden=32, layers=2), make_model(folder / "teacher", seed=3)
    base = settings(model, make_prompts(folder / "prompts.jsonl"), folder / "head", run={"steps": 2}, **GRADED)
    kept = {"checkpoint": {"every": 2, "export_final": True}}
    quick = {"models": {"prm": {"optimizer": {"lr": 1e-2}}}}
    once = {"run": {"steps": 1}, "checkpoint": {"every": 1, "export_final": True}}
    frozen = {"prm": {"update": "none"}, "models": {"prm": {"path": str(folder / "head" / "prm")}}}
    modes = {
        "head": merge(merge(HEAD, kept), quick),
        "frozen-head": merge(merge(HEAD, once), frozen),
        "frozen": merge(with_teacher(KINDS["frozen"], teacher), once),
    }
    configs = [merge(merge(base, mode), {"run": {"output_dir": str(folder / name)}}) for name, mode in modes.items()]
    (codes,) = run_ranks(train_all, 1, json.dumps(configs))
    assert codes == [0, 0, 0]
    return {name: folder / name for name in (*modes, "model", "teacher")}


def test_transformers_gives_the_head_s_rewards(runs: dict[str, Path]) -> None:
    """v_t - v_{t-1} of every response, by another implementation, from the exported folder."""
    model = AutoModelForSequenceClassification.from_pretrained(runs["head"] / "prm", dtype=torch.float32).eval()
    assert type(model).__name__ == "Qwen2ForSequenceClassification" and model.config.num_labels == 1
    assert "head of one value" in (runs["head"] / "prm" / "README.md").read_text()
    tokenizer = make_tokenizer()
    rows = read_lines({"run": {"output_dir": runs["frozen-head"]}}, "samples.jsonl")
    rewards = []
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
        with torch.no_grad():
            hidden = model.model(torch.tensor([[*prompt, *row["token_ids"]]]))[0][0]
            values = model.score(hidden)[:, 0].double().sigmoid()
        steps = (values[1:] - values[:-1])[len(prompt) - 1 :]
        torch.testing.assert_close(torch.tensor(row["process_rewards"], dtype=torch.float64), steps, rtol=0, atol=2e-6)
        rewards += steps.tolist()
    assert len(rows) == 20 and max(map(abs, rewards)) > 1e-3


def test_a_head_converts_both_ways(runs: dict[str, Path], tmp_path: Path) -> None:
    exported = load_file(runs["head"] / "prm" / "model.safetensors")
    conversion = MegatronToHf(
        runs["head"] / "checkpoints" / "step-00000002" / "prm", tmp_path / "hf", None, runs["model"]
    )
    conversion.run(ignore)
    assert conversion.verify(ignore) == "every value is the same"
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert exported.keys() == found.keys() and all(torch.equal(found[name], exported[name]) for name in exported)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config == json.loads((runs["head"] / "prm" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    back = HfToMegatron(runs["head"] / "prm", tmp_path / "megatron", None)
    back.run(ignore)
    assert back.verify(ignore) == "every value is the same"


def test_scoring_refuses_a_head(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1?", "response": "2"}) + "\n")
    words = ["score", str(runs["head"] / "prm"), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "a head of one value" in said and said.count("\n") == 1


def test_a_frozen_prm_keeps_its_bytes(runs: dict[str, Path]) -> None:
    """No optimizer, so nothing in the checkpoint; what is exported is what was read."""
    saved = runs["frozen"] / "checkpoints" / "step-00000001"
    assert (saved / "policy").is_dir() and not (saved / "prm").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (runs["teacher"], runs["frozen"] / "prm"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    (row,) = read_lines({"run": {"output_dir": runs["frozen"]}}, "metrics.jsonl")[1:]
    assert "prm/grad_norm" not in row and row["process_reward/std"] > 0


CASES: dict[str, dict[str, Any]] = {"head": HEAD, "rlsd": RLSD | {"parallel": {"tensor": 2}}}


@pytest.mark.parametrize("name", CASES)
def test_resume_changes_no_bit(name: str, tmp_path: Path) -> None:
    """The copy of the policy was taken in the step before, from weights that no folder has."""
    saved, sections = 3, CASES[name] | GRADED
    config = toy(tmp_path, **sections)
    config = merge(config, {"run": {"steps": saved + 1}, "checkpoint": {"every": saved}})
    assert train(config, 2) == {0}
    expected = outcome(tmp_path / "straight")
    assert expected["metrics"][-1]["policy/grad_norm"] > 0 and expected["metrics"][-1]["process_reward/std"] > 0
    checkpoint = tmp_path / "straight" / "checkpoints" / f"step-{saved:08d}"
    assert (checkpoint / "teacher").is_dir() == (name == "rlsd")
    stopped_at(tmp_path / "straight", saved, tmp_path / "out")
    assert train(at(config, tmp_path / "out"), 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)
