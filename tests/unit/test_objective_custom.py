"""policy.objective package.module:function: a user's own, tried before the run, and its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prime_megatron.algo.objectives import OBJECTIVES, objective_named
from prime_megatron.cli.main import main
from prime_megatron.config.check_algorithm import OBJECTIVES as NAMES
from prime_megatron.errors import InputError
from tests.support.objective_oracle import draw, loss_of

MODULE = """\
import torch
from prime_megatron.algo.objectives import Surrogate

def squared(tokens):
    return 0.5 * (tokens.log_ratio_t - tokens.advantages_t) ** 2

def told(tokens):
    return Surrogate(squared(tokens), figures={"spread": tokens.sequence_mean(tokens.log_ratio_t)})

def short(tokens):
    return squared(tokens)[:-1]

def detached(tokens):
    return squared(tokens).detach()

def number(tokens):
    return 1.0

def endless(tokens):
    return squared(tokens) / 0.0

def broken(tokens):
    return tokens.logprobs_T

def two_words(tokens):
    return Surrogate(squared(tokens), figures={"two words": tokens.advantages_t})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of its own name in the working directory."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_names_of_the_config_are_those_of_the_registry() -> None:
    assert tuple(OBJECTIVES) == NAMES
    assert all(objective_named(name) is OBJECTIVES[name] and OBJECTIVES[name].name == name for name in NAMES)


def test_a_function_of_one_s_own_is_differentiated(module: str) -> None:
    drawn = draw(5, one_advantage=False)
    loss, new = loss_of(drawn, objective_named(f"{module}:told")), torch.tensor(drawn.new)
    terms = loss.terms(new, torch.zeros_like(new), slice(0, new.numel()))
    gap = drawn.new - drawn.old - drawn.advantage
    np.testing.assert_allclose(float(terms.loss), (drawn.weight * 0.5 * gap**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(terms.dlogprobs_t.numpy(), drawn.weight * gap, rtol=1e-6, atol=1e-9)
    means = np.concatenate([np.full(s.stop - s.start, (drawn.new - drawn.old)[s].mean()) for s in drawn.spans])
    spread = float(terms.stats["policy_objective_spread_sum"])
    assert spread == pytest.approx(means[drawn.weight > 0].sum(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("short", r"returns loss_t of \[6\] for seven tokens"),
        ("detached", "does not depend on logprobs_t"),
        ("number", "returns a float"),
        ("endless", "not finite"),
        ("broken", "fails on seven tokens of two sequences: AttributeError"),
        ("two_words", "not one word"),
        ("absent", "has no 'absent'"),
    ],
)
def test_what_is_none_is_refused(module: str, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"policy.objective: .*{reason}") as error:
        objective_named(f"{module}:{name}")
    assert "\n" not in str(error.value)


def test_validate_tries_it(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        "run: {output_dir: o, steps: 2}\nmodels: {policy: {path: m}}\ndata: {train: [a.jsonl]}\n"
    )
    assert main(["validate", "run.yaml", f"policy.objective={module}:squared"]) == 0
    assert main(["validate", "run.yaml", f"policy.objective={module}:short"]) == 2
    assert "policy.objective" in capsys.readouterr().err
