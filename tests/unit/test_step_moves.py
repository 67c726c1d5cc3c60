"""What is copied between device and host in a step: by hand for two algorithms, and the verb that shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from prime_megatron.config import TrainConfig
from prime_megatron.step.moves import moves
from prime_megatron.step.works import works
from tests.support.public_models import make_folder

STATE, WEIGHTS = "optimizer state", "weights"


def config(offload: str, **sections: Any) -> TrainConfig:
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["x"]}}
    return TrainConfig.model_validate_json(json.dumps(values | {"parallel": {"offload": offload}} | sections))


def told(offload: str, **sections: Any) -> list[tuple[str, str, str, str]]:
    return [(move.role, move.what, move.to, move.beside) for move in moves(config(offload, **sections))]


def step_of(role: str) -> list[tuple[str, str, str, str]]:
    return [(role, STATE, place, "every optimizer step, by pieces") for place in ("device", "host")]


def test_the_plain_step_in_turns() -> None:
    assert told("none") == []
    assert told("phases") == [
        ("reference", WEIGHTS, "device", ""),
        ("prm", WEIGHTS, "device", "reference scores"),
        ("policy", WEIGHTS, "device", "prm update"),
        *step_of("prm"),
        ("prm", WEIGHTS, "host", "policy update"),
        *step_of("policy"),
        ("policy", WEIGHTS, "host", ""),
    ]


def test_a_step_with_every_model() -> None:
    """The policy reads first and is not changed by it; a scoring PRM after its update keeps what it learned."""
    sections = {
        "advantage": {"estimator": "gae"},
        "prm": {"update": "before"},
        "policy": {"kl_place": "loss", "kl_coef": 0.1},
        "models": {"policy": {"path": "m", "num_mini_batches": 2}, "prm": {"path": "p"}},
    }
    assert [(work.role, work.learns) for work in works(config("phases", **sections))] == [
        ("policy", False), ("reference", False), ("policy_reference", False), ("critic", False),
        ("prm", True), ("prm", False), ("policy", True), ("critic", True), ("policy", False),
    ]  # fmt: skip
    assert told("phases", **sections) == [
        ("policy", WEIGHTS, "device", ""),
        ("reference", WEIGHTS, "device", "policy scores"),
        ("policy_reference", WEIGHTS, "device", "reference scores"),
        ("critic", WEIGHTS, "device", "policy_reference scores"),
        ("prm", WEIGHTS, "device", "critic scores"),
        *step_of("prm"),
        ("policy", WEIGHTS, "device", "prm scores"),
        ("prm", WEIGHTS, "host", "policy update"),
        ("critic", WEIGHTS, "device", "policy update"),
        *step_of("policy"),
        *step_of("critic"),
        ("critic", WEIGHTS, "host", "policy reshard"),
        ("policy", WEIGHTS, "host", ""),
    ]


def test_around_generation_everything_moves() -> None:
    both = "weights and optimizer state"
    assert told("generation") == [
        ("policy", both, "device", ""), ("prm", both, "device", ""), ("reference", WEIGHTS, "device", ""),
        ("policy", STATE, "host", ""), ("prm", both, "host", ""), ("policy", WEIGHTS, "host", ""),
    ]  # fmt: skip


def test_the_verb_shows_order_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{output_dir: {tmp_path / 'o'}, steps: 1}}\nmodels: {{policy: {{path: {folder}}}}}\n"
        "data: {train: [x]}\nparallel: {offload: phases}\n"
    )
    assert main(["plan-step", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = lines[lines.index(["move", "what", "to", "size", "beside"]) + 1 :]
    # 2 bytes a parameter of 7,615,616,512, and 12.
    assert table[0] == ["reference", "weights", "device", "14.19", "GiB"]
    assert table[3][:6] == ["prm", "optimizer", "state", "device", "85.11", "GiB"]
