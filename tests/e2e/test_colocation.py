"""Models that leave the device while the engine generates come back as they were; saves and exports find them there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file

from prime_megatron.config import TrainConfig
from prime_megatron.run import assemble
from prime_megatron.run.colocation import Colocation
from tests.support import resume_runs, toy
from tests.support.ranks import run_ranks
from tests.support.runs import TIMINGS, differences, read_lines, train_all


def test_offload_changes_no_number_and_is_saved(tmp_path: Path) -> None:
    model, prompts = toy.make_model(tmp_path / "model"), toy.make_prompts(tmp_path / "prompts.jsonl")
    runs = [
        toy.settings(
            model, prompts, tmp_path / name, parallel={"offload": offload},
            checkpoint={"every": 2, "save_final": True, "export_final": True},
        )
        for name, offload in (("stay", "none"), ("move", "generation"))
    ]  # fmt: skip
    assert run_ranks(train_all, 1, json.dumps(runs), timeout_s=240.0) == [[0, 0]]
    stay, move = (read_lines(settings, "metrics.jsonl") for settings in runs)
    assert {key: gap for key, gap in differences(stay, move, TIMINGS).items() if gap} == {}
    exported = [tmp_path / name / "policy" / "model.safetensors" for name in ("stay", "move")]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert "memory/asleep_host_bytes" in read_lines(runs[1], "memory.jsonl")[-1]


def test_memory_by_role_and_phase(tmp_path: Path) -> None:
    """All four roles; the host's copies appear where models move. Policy and PRM in float32: moments are twice the
    parameters (tied, so all of them trained), the reference has parameters alone."""
    folder = toy.make_model(tmp_path / "model", hidden=32, layers=2)
    prompts = toy.make_prompts(tmp_path / "prompts.jsonl")
    config = toy.settings(
        folder, prompts, tmp_path / "out", parallel={"offload": "generation"}, advantage={"estimator": "gae"},
        run={"steps": 2},
    )  # fmt: skip
    assert resume_runs.train(config, 1) == {0}
    num_params = sum(tensor.numel() for tensor in load_file(f"{folder}/model.safetensors").values())
    row = read_lines(config, "memory.jsonl")[-1]
    for role in ("policy", "prm", "critic"):
        value_head = 32 if role == "critic" else 0
        for kind, per_param in (("parameters", 4), ("gradients", 4), ("optimizer", 8)):
            at = f"{role}/{kind}"
            device = row[f"memory/updated/{at}_device_bytes"]
            wanted = per_param * (num_params + value_head)
            # Megatron pads its flat buffers.
            assert wanted <= device <= wanted * 1.1, at
            assert row[f"memory/cache_awake/{at}_device_bytes"] == 0, at
            host = row[f"memory/cache_awake/{at}_host_bytes"]
            assert host == 0 if kind == "gradients" else host >= device, at
    assert row["memory/updated/reference/parameters_device_bytes"] == 4 * num_params
    assert row["memory/updated/reference/optimizer_device_bytes"] == 0
    lines = resume_runs.said(tmp_path / "out").splitlines()
    (start,) = (number for number, line in enumerate(lines) if "memory of the models on rank 0" in line)
    table = [line.split() for line in lines[start + 1 : start + 15]]
    assert table[0][:2] == ["role", "kind"]
    assert {row[0] for row in table[1:]} >= {"policy", "prm", "critic", "reference", "all"}
    assert not any("memory/" in line for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())


class Log:
    """An engine, a sync and models that write down what is asked of them."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def sleep(self, level: int) -> None:
        self.seen.append("sleep")

    def wake(self, tags: set[str]) -> None:
        self.seen.append(f"wake {min(tags)}")

    def publish(self, version: int) -> None:
        self.seen.append(f"sync {version}")

    def offload(self, *, gradients: bool = True) -> int:
        self.seen.append(f"{self.name} away")
        return 0

    def onload(self) -> int:
        self.seen.append(f"{self.name} back")
        return 0


def test_the_order_around_generation() -> None:
    seen: list[str] = []
    colocation = Colocation(Log("", seen), Log("", seen), Log("policy", seen), [Log("prm", seen)])
    publishes = ["prm away", "wake weights", "sync 4", "policy away", "wake kv_cache"]
    trains = ["sleep", "prm back", "policy back"]
    colocation.publish(4)
    assert seen == publishes
    colocation.sleep_engine()
    assert seen == publishes + trains
    edges = colocation.take_readings()
    assert [key.split("/")[1] for key in edges] == [
        f"{edge}_host_bytes"
        for edge in ("updated", "trained", "weights_awake", "synced", "cache_awake", "generated", "asleep")
    ]
    assert all(value > 0 for value in edges.values())
    assert colocation.take_readings() == {}
    seen.clear()
    with colocation.saving(due=False):
        assert seen == []
    with colocation.saving(due=True):
        assert seen == trains
    assert seen == trains + publishes
    seen.clear()
    colocation.publish_again()
    assert seen == trains + publishes


@pytest.mark.parametrize(
    ("offload", "wanted"),
    [
        ("none", ["start"]),
        ("generation", ["policy away", "prm away", "start", "sleep", "policy back", "prm back"]),
    ],
)
def test_the_engine_starts_on_a_device_that_the_models_have_left(
    offload: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def build(*_: object, **__: object) -> Log:
        seen.append("start")
        return Log("", seen)

    monkeypatch.setattr(assemble, "build_engine", build)
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["x"]}}
    config = TrainConfig.model_validate_json(json.dumps(values | {"parallel": {"offload": offload}}))
    inputs: Any = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_ids=(0,)), suite=None)
    roles: Any = SimpleNamespace(distinct=[Log("policy", seen), Log("prm", seen)])
    assembly = assemble.Assembly(config)
    assembly.topology, assembly.inputs, assembly.roles = cast(Any, None), inputs, roles
    assembly.start_engine()
    assert seen == wanted
