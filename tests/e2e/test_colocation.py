"""Models that leave the device while the engine generates come back as they were; saves and exports find them there."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file

from prime_megatron.config import Offload, TrainConfig
from prime_megatron.run import assemble
from prime_megatron.run.colocation import Colocation
from prime_megatron.run.residency import Residency
from prime_megatron.step.works import Work
from tests.support import resume_runs, toy
from tests.support.prm_kinds import KINDS, with_teacher
from tests.support.ranks import run_ranks
from tests.support.runs import TIMINGS, differences, read_lines, train_all, train_rank
from tests.support.runs import run as train


def test_offload_changes_no_number_and_is_saved(tmp_path: Path) -> None:
    model, prompts = toy.make_model(tmp_path / "model"), toy.make_prompts(tmp_path / "prompts.jsonl")
    runs = [
        toy.settings(
            model, prompts, tmp_path / name, parallel={"offload": offload},
            checkpoint={"every": 2, "save_final": True, "export_final": True},
        )
        for name, offload in (("none", "none"), ("generation", "generation"))
    ]  # fmt: skip
    assert run_ranks(train_all, 1, json.dumps(runs), timeout_s=240.0) == [[0, 0]]
    check_alike(runs)
    assert "memory/asleep_host_bytes" in read_lines(runs[1], "memory.jsonl")[-1]


def check_alike(runs: list[dict[str, Any]]) -> None:
    """Every metric but times, every exported weight and every file of every checkpoint, to the bit."""
    stay = read_lines(runs[0], "metrics.jsonl")
    outputs = [Path(settings["run"]["output_dir"]) for settings in runs]
    for settings, output in zip(runs[1:], outputs[1:], strict=True):
        found = differences(stay, read_lines(settings, "metrics.jsonl"), TIMINGS)
        assert {key: gap for key, gap in found.items() if gap} == {}
        paths = [path for kind in ("safetensors", "distcp") for path in outputs[0].rglob(f"*.{kind}")]
        # Python's own random state differs from process to process.
        names = [path.relative_to(outputs[0]) for path in paths if path.name != "rng.safetensors"]
        assert len(names) > 2
        for name in names:
            assert (outputs[0] / name).read_bytes() == (output / name).read_bytes(), name


@pytest.mark.parametrize(
    ("layout", "dtype", "asynchronous"),
    [({"pipeline": 2}, "bfloat16", True), ({"tensor": 2}, "bfloat16", False), ({}, "float32", True)],
)
def test_models_that_take_turns_change_no_number(
    tmp_path: Path, layout: dict[str, int], dtype: str, asynchronous: bool
) -> None:
    """Every pass there is, on PP2, TP2 and DP2; saved, and with a pipeline resumed in the middle."""
    model, prompts = toy.make_model(tmp_path / "model", layers=2), toy.make_prompts(tmp_path / "prompts.jsonl")
    runs = [
        toy.settings(
            model, prompts, tmp_path / offload, parallel={"offload": offload, **layout}, run={"steps": 2},
            models={"dtype": dtype, "policy": {"num_mini_batches": 2}}, prm={"update": "before"},
            policy={"kl_place": "loss", "kl_coef": 0.1}, rollout={"prompts_per_step": 4},
            checkpoint={"every": 1, "save_final": True, "export_final": True, "asynchronous": asynchronous},
        )
        for offload in ("none", "phases")
    ]  # fmt: skip
    train(runs[0], 2)
    if "pipeline" in layout:
        train(toy.merge(runs[1], {"run": {"steps": 1}}), 2)
        assert set(run_ranks(train_rank, 2, json.dumps(runs[1]), "auto", timeout_s=240.0)) == {0}
    else:
        train(runs[1], 2)
    check_alike(runs)
    row = read_lines(runs[1], "memory.jsonl")[-1]
    for role in ("policy", "prm"):
        assert row[f"memory/{role}_learns/{role}/gradients_device_bytes"] > 0
        others = {"policy", "prm", "reference"} - {role, "policy"}
        assert all(row[f"memory/{role}_learns/{other}/parameters_device_bytes"] == 0 for other in others)
        assert all(row[f"memory/{role}_learns/{other}/optimizer_device_bytes"] == 0 for other in ("policy", "prm"))
    told = [key.split("/")[-1].split("_", 1) for key in row if key.startswith("memory/moves/")]
    assert [number for number, _ in told] == [f"{index:03}" for index in range(1, len(told) + 1)]
    assert any(what == "prm_optimizer_to_host_bytes" for _, what in told)


@pytest.mark.parametrize("kind", ["head", "rlsd", "frozen"])
def test_other_judges_take_turns(tmp_path: Path, kind: str) -> None:
    """A head that learns, a teacher that is copied from the policy, a PRM that never learns."""
    model, prompts = toy.make_model(tmp_path / "model", layers=2), toy.make_prompts(tmp_path / "prompts.jsonl")
    graded = {"custom": {"math": "examples.custom_reward.rewards:wanted_characters"}}
    base = toy.settings(
        model, prompts, tmp_path / "none", run={"steps": 3}, verify=graded,
        checkpoint={"every": 3, "save_final": True, "export_final": True},
    )  # fmt: skip
    base = toy.merge(base, with_teacher(KINDS[kind], toy.make_model(tmp_path / "teacher", layers=2, seed=3)))
    away = {"parallel": {"offload": "phases"}, "run": {"output_dir": str(tmp_path / "phases")}}
    runs = [base, toy.merge(base, away)]
    assert run_ranks(train_all, 1, json.dumps(runs), timeout_s=240.0) == [[0, 0]]
    check_alike(runs)
    assert read_lines(runs[1], "metrics.jsonl")[-1]["policy/grad_norm"] > 0
    row = read_lines(runs[1], "memory.jsonl")[-1]
    held = {key.split("/")[2] for key in row if key.startswith("memory/policy_learns/") and key.count("/") == 3}
    judge = "teacher" if kind == "rlsd" else "prm"
    assert {"policy", judge} <= held
    assert all(row[f"memory/policy_learns/{other}/parameters_device_bytes"] == 0 for other in held - {"policy"})


def test_twenty_steps_grow_nothing(tmp_path: Path) -> None:
    """What a step would keep of one model's weights, twenty would show twentyfold. Compared with a run in which nothing
    moves: torch's own buffers for every new shape of a batch are in both."""
    folder, prompts = toy.make_model(tmp_path / "model", hidden=192, layers=4), toy.make_prompts(tmp_path / "p.jsonl")
    grown = {}
    for offload in ("none", "phases"):
        config = toy.settings(
            folder, prompts, tmp_path / offload, parallel={"offload": offload}, run={"steps": 24},
            rollout={"prompts_per_step": 2}, checkpoint={"save_final": False, "export_final": False},
        )  # fmt: skip
        assert resume_runs.train(config, 1) == {0}
        rows = {row["step"]: row for row in read_lines(config, "memory.jsonl")}
        grown[offload] = rows[24]["memory/generated_host_bytes"] - rows[4]["memory/generated_host_bytes"]
    weights = sum(tensor.nbytes for tensor in load_file(f"{folder}/model.safetensors").values())
    assert grown["phases"] - grown["none"] < 5 * weights, grown


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


class Engine:
    """An engine and a sync that write down what is asked of them."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def sleep(self, level: int) -> None:
        self.seen.append("sleep")

    def wake(self, tags: set[str]) -> None:
        self.seen.append(f"wake {min(tags)}")

    def publish(self, version: int) -> None:
        self.seen.append(f"sync {version}")


class Model:
    """A model that writes down what of it moves; a parameter is a byte, its optimizer has three."""

    def __init__(self, name: str, seen: list[str], *, trained: bool) -> None:
        self.name, self.seen = name, seen
        self.sizes = {"parameters": 1, "gradients": 2 * trained, "optimizer": 3 * trained}
        self.here = set(self.sizes)

    @property
    def memory(self) -> Model:
        return self

    def device_bytes(self) -> dict[str, int]:
        return {kind: size if kind in self.here else 0 for kind, size in self.sizes.items()}

    def host_bytes(self) -> dict[str, int]:
        return dict.fromkeys(self.sizes, 0)

    def send(self, kinds: Collection[str]) -> int:
        return self._move(self.here & set(kinds), "away")

    def bring(self, kinds: Collection[str]) -> int:
        return self._move(set(kinds) - self.here, "back")

    def _move(self, kinds: set[str], where: str) -> int:
        self.here ^= kinds
        moved = [kind[0] for kind in sorted(kinds, reverse=True) if self.sizes[kind]]
        if moved:
            self.seen.append(f"{self.name} {''.join(moved)} {where}")
        return sum(self.sizes[kind] for kind in kinds)

    def settle(self) -> None: ...

    def take_stepped(self) -> tuple[int, int]:
        return 0, 0


def residency_of(offload: str, seen: list[str]) -> Residency:
    models = [Model("policy", seen, trained=True), Model("prm", seen, trained=True)]
    models.append(Model("reference", seen, trained=False))
    order = (
        Work("score", "reference", False),
        Work("prm", "prm", True),
        Work("policy", "policy", True),
        Work("reshard", "policy", False),
    )
    return Residency(Offload(offload), models, order)


def test_the_order_around_generation() -> None:
    seen: list[str] = []
    residency = residency_of("generation", seen)
    colocation = Colocation(Engine(seen), Engine(seen), residency.models[0], residency)
    publishes = [
        "policy og away", "prm pog away", "reference p away", "wake weights", "sync 4", "policy p away",
        "wake kv_cache",
    ]  # fmt: skip
    trains = ["sleep", "policy pog back", "prm pog back", "reference p back"]
    colocation.publish(4)
    assert seen == publishes
    colocation.sleep_engine()
    assert seen == publishes + trains
    for model in residency.models:
        colocation.learns(model)
    assert seen == publishes + trains, "in training all are there"
    edges = colocation.take_readings()
    assert [key.split("/")[1] for key in edges if key.endswith("host_bytes") and key.count("/") == 1] == [
        f"{edge}_host_bytes"
        for edge in ("updated", "trained", "weights_awake", "synced", "cache_awake", "generated", "asleep")
    ]
    assert all(value > 0 for key, value in edges.items() if key.count("/") == 1)
    assert edges["memory/moves/001_policy_to_host_bytes"] == 5
    assert colocation.take_readings() == {}
    colocation.publish(4)
    seen.clear()
    with colocation.saving(due=False):
        assert seen == []
    with colocation.saving(due=True):
        assert seen == trains
    assert seen == trains + publishes
    seen.clear()
    colocation.publish_again()
    assert seen == trains + publishes


def test_models_take_turns() -> None:
    """Of the model that works its weights, and gradients while it learns; of the next one its weights."""
    seen: list[str] = []
    residency = residency_of("phases", seen)
    policy, prm, reference = residency.models
    colocation = Colocation(Engine(seen), Engine(seen), policy, residency)
    residency.leave()
    colocation.take_readings()
    seen.clear()
    colocation.sleep_engine()
    colocation.reads(reference)
    assert seen == ["sleep", "reference p back", "prm p back"]
    colocation.learns(prm)
    assert seen[3:] == ["reference p away", "prm g back", "policy p back"]
    colocation.reads(prm)  # a measurement of its own
    assert seen[6:] == ["policy p away", "prm g away"]
    colocation.learns(policy)
    assert seen[8:] == ["prm p away", "policy pg back"]
    colocation.publish(1)
    assert seen[10:] == ["policy g away", "wake weights", "sync 1", "policy p away", "wake kv_cache"]
    readings = colocation.take_readings()
    assert readings["memory/prm_learns/policy/parameters_device_bytes"] == 1, "on its way"
    assert readings["memory/prm_learns/reference/parameters_device_bytes"] == 0
    assert readings["memory/policy_learns/prm/parameters_device_bytes"] == 0
    moves = [key.split("/")[-1] for key in readings if "/moves/" in key]
    assert moves[:3] == ["001_reference_to_device_bytes", "002_prm_to_device_bytes", "003_reference_to_host_bytes"]
    seen.clear()
    with residency.whole(prm):
        assert seen == ["prm po back"]
    assert seen == ["prm po back", "prm po away"]


@pytest.mark.parametrize(
    ("offload", "wanted"),
    [
        ("none", ["start"]),
        ("generation", ["policy pog away", "prm pog away", "reference p away", "start", "sleep", "policy pog back",
                        "prm pog back", "reference p back"]),
        ("phases", ["policy pog away", "prm pog away", "reference p away", "start", "sleep"]),
    ],
)  # fmt: skip
def test_the_engine_starts_on_a_device_that_the_models_have_left(
    offload: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def build(*_: object, **__: object) -> Engine:
        seen.append("start")
        return Engine(seen)

    monkeypatch.setattr(assemble, "build_engine", build)
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": "m"}}, "data": {"train": ["x"]}}
    config = TrainConfig.model_validate_json(json.dumps(values | {"parallel": {"offload": offload}}))
    assembly = assemble.Assembly(config)
    inputs: Any = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_ids=(0,)), suite=None)
    assembly.topology, assembly.inputs, assembly.residency = cast(Any, None), inputs, residency_of(offload, seen)
    assembly.start_engine()
    assert seen == wanted
