"""N steps equal k steps, a resume, and N - k steps, for the models and layouts that test_resume.py has not: mixtures of
experts, virtual pipeline stages, a critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.resume_runs import assert_same, at, outcome, stopped_at, toy, train
from tests.support.toy import make_model, make_tokenizer

STEP = 2
"""Of three: the only one that is saved."""
CRITIC = {
    "advantage": {"estimator": "gae", "gamma_process": 0.98, "gamma_outcome": 0.98, "gae_lambda": 0.9},
    "models": {"critic": {"num_mini_batches": 2, "optimizer": {"lr": 1e-3}}},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts-ep2": ("qwen3_moe", {"parallel": {"expert": 2}}),
    # Whole experts on tensor-parallel ranks, which are replicas of theirs and share their optimizer state.
    "experts-tp2": ("mixtral", {"parallel": {"tensor": 2, "sequence": True}}),
    "vpp2": ("qwen2", {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}),
    "critic": ("qwen2", CRITIC),
    "critic-pp2": ("qwen2", CRITIC | {"parallel": {"pipeline": 2}}),
}


def _model(folder: Path, family: str) -> str:
    if family == "qwen2":
        return make_model(folder, hidden=32, layers=4)
    models.make_model(folder, family, vocab_size=65, num_hidden_layers=2, eos_token_id=1, pad_token_id=0)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", CASES)
def test_resume_changes_no_bit(name: str, tmp_path: Path) -> None:
    family, sections = CASES[name]
    config = toy(tmp_path, run={"steps": STEP + 1}, checkpoint={"every": STEP, "export_final": True}, **sections)
    config = at(config, tmp_path / "straight", models={"policy": {"path": _model(tmp_path / family, family)}})
    assert train(config, 2) == {0}
    expected = outcome(tmp_path / "straight")
    assert expected["metrics"][-1]["policy/grad_norm"] > 0
    # The engine answers with the trainer's weights, every layer's experts among them.
    assert all(row["engine/logprob_gap_max"] < 1e-5 for row in expected["metrics"][1:])
    if name.startswith("critic"):
        assert expected["metrics"][-1]["critic/grad_norm"] > 0
    stopped_at(tmp_path / "straight", STEP, tmp_path / "out")
    assert train(at(config, tmp_path / "out"), 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)
