"""Algorithms beside the default one, end to end: the same steps on one process and in a mixed layout, TP2 x PP2 and
CP2 x DP2 in turn, packed; and a step's FLOPs against its plan."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.config import TrainConfig
from prime_megatron.config.presets import PRESETS
from prime_megatron.step.plan import plan_step
from tests.support import flops
from tests.support.prm_kinds import HEAD, KINDS, RLSD, TAUGHT, with_teacher
from tests.support.ranks import run_ranks
from tests.support.runs import check_same, judge, read_lines, run, train_rank
from tests.support.toy import make_model, make_prompts, merge, settings

GRPO = {"estimator": "grpo", "process_weight": 0.0, "whiten": False}
MINIS = {"policy": {"num_mini_batches": 2, "optimizer": {"lr": 3e-3}}}  # so that ratios leave the clips
MODES: dict[str, dict[str, Any]] = {
    "local-credit": {
        "prm": {"norm": "none", "ratio_floor": 0.05, "beta": 0.5},
        "advantage": {"gamma_process": 0.0, "process_weight": 3.0},
    },
    "passes": {"prm": {"passes": 2, "loss": "ce_intercept"}, "models": {"prm": {"num_mini_batches": 2}}},
    "dual-clip": {
        "policy": {
            "objective": "dual_clip", "dual_clip": 1.01, "clip_low": 0.01, "importance_cap": 1.02,
            "importance_level": "sequence",
        },
        "models": MINIS,
    },
    "gspo": {
        "policy": {
            "objective": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "loss_aggregation": "sequence_mean",
            "importance_cap": 1.05, "importance_floor": 0.95, "importance_level": "geometric",
            "importance_mode": "reject",
        },
        "models": MINIS,
    },
    "cispo": {
        "advantage": GRPO,
        "policy": {
            "objective": "cispo", "clip_low": 1.0, "clip_high": 0.02, "importance_cap": 1.02,
            "importance_floor": 0.99, "importance_mode": "mask",
        },
        "models": MINIS,
    },
    "drgrpo": {
        "advantage": {**GRPO, "scale_by_deviation": False}, "policy": {"loss_aggregation": "constant_length"},
    },
    "dapo": {
        "advantage": {**GRPO, "overlong_buffer": 8, "overlong_penalty": 0.5},
        "policy": {"clip_high": 0.28, "mask_truncated": True, "loss_aggregation": "sequence_sum"},
        "models": MINIS,
    },
    "own": {"policy": {"objective": "tests.support.own_objective:cubed"}, "models": MINIS},
    "min-form": {
        "prm": {"granularity": "step", "step_delimiter": "e", "softmin_temperature": 0.1, "norm": "none", "beta": 0.5},
    },
    "ipvrm": {"prm": PRESETS["ipvrm"]["prm"], "advantage": PRESETS["ipvrm"]["advantage"]},
    "spro": {"prm": PRESETS["spro"]["prm"], "advantage": PRESETS["spro"]["advantage"], "models": MINIS},
    **KINDS,
}  # fmt: skip
ONE_PASS = {"prm": {"loss": "ce_intercept"}, "models": {"prm": {"num_mini_batches": 2}}}
LAYOUTS = ({"tensor": 2, "pipeline": 2}, {"context": 2})


def train_in_turn(runs: str, folder: str) -> list[int]:
    """Several runs one after the other on the same ranks, each with process groups of its own."""
    codes = []
    for index, row in enumerate(json.loads(runs)):
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/store-{index}",
                rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
            )  # fmt: skip
        codes.append(train_rank(json.dumps(row)))
    return codes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that replay two steps of judged rollouts."""
    folder: Path = tmp_path_factory.mktemp("algorithms")
    model, prompts = make_model(folder / "model", hidden=32, layers=2), make_prompts(folder / "prompts.jsonl")
    recorded = settings(model, prompts, folder / "recorded", run={"steps": 2})
    run(merge(recorded, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    return merge(recorded, {"rollout": {"engine": "replay", "replay": replay}, "packing": {"max_tokens": 60}})


@pytest.fixture(scope="module")
def results(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Mode -> metrics on one process, and in a mixed layout."""
    folder: Path = tmp_path_factory.mktemp("runs")
    teacher = make_model(folder / "teacher", hidden=48, layers=2, seed=3)
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in (*MODES, "one-pass")}
    for size, modes in ((1, {**MODES, "one-pass": ONE_PASS}), (4, MODES)):
        (stores := folder / f"stores-{size}").mkdir()
        runs = [
            merge(
                merge(base, with_teacher(mode, teacher)),
                {
                    "run": {"output_dir": str(folder / f"{name}-{size}")},
                    "parallel": LAYOUTS[index % 2] if size == 4 else {},
                },
            )
            for index, (name, mode) in enumerate(modes.items())
        ]
        assert (
            run_ranks(train_in_turn, size, json.dumps(runs), str(stores), timeout_s=280.0) == [[0] * len(runs)] * size
        )
        for name, done in zip(modes, runs, strict=True):
            found[name].append(read_lines(done, "metrics.jsonl"))
    return found


@pytest.mark.parametrize("name", MODES)
def test_a_mixed_layout_changes_nothing(name: str, results: Any) -> None:
    one, mixed = results[name]
    assert one[-1]["policy/grad_norm"] > 0.0
    check_same(one, mixed)


def test_modes_differ(results: Any) -> None:
    norms = {name: runs[0][2]["policy/grad_norm"] for name, runs in results.items()}
    assert len(set(norms.values())) == len(MODES) + 1, norms


def test_every_objective_and_correction_acts(results: Any) -> None:
    """Something is clipped, held, weighed, rejected or masked, and the figures of each say so."""
    last = {name: runs[0][2] for name, runs in results.items()}
    assert last["dual-clip"]["policy/objective_dual_clip"] > 0 and last["dual-clip"]["policy/clip_low"] > 0
    assert last["dual-clip"]["policy/importance_capped"] > 0
    assert last["gspo"]["policy/clip_fraction"] > 0 and last["gspo"]["policy/objective_sequence_ratio"] != 1
    assert last["gspo"]["policy/kept"] == pytest.approx(1 - last["gspo"]["policy/importance_dropped"])
    assert 0 < last["gspo"]["policy/kept"] < 1
    assert last["cispo"]["policy/objective_weight_high"] > 0 == last["cispo"]["policy/objective_weight_low"]
    assert last["cispo"]["policy/importance_below"] > 0 and last["cispo"]["policy/kept"] == 1
    assert last["dapo"]["policy/kept"] < 1 and last["dapo"]["outcome/overlong_penalty"] > 0
    assert last["own"]["policy/objective_tilt"] != 0


def test_every_judge_speaks(results: Any) -> None:
    """Rewards by a head that began at zero, by a frozen PRM, by teachers; the told copy of the policy moves sizes."""
    last = {name: results[name][0][2] for name in KINDS}
    assert all(row["process_reward/std"] > 0 for row in last.values())
    assert results["head-last"][0][1]["prm/ce"] == pytest.approx(math.log(2), rel=1e-6)
    assert last["head"]["prm/ce"] != results["head"][0][1]["prm/ce"] and "prm/grad_norm" not in last["frozen"]
    assert not any(key.startswith("prm/") for name in ("teacher", "iw-opd", "rlsd") for key in last[name])
    assert last["distillation"]["advantage/mean"] == pytest.approx(0.5 * last["distillation"]["process_reward/mean"])
    assert last["rlsd"]["teacher/mix"] == pytest.approx(0.5 * 7 / 8) and last["rlsd"]["teacher/clipped"] > 0


def test_passes_score_with_the_first_and_learn_from_all(results: Any) -> None:
    """The first step is scored as with one pass, and the PRM learns twice; the second shows it."""
    one, two = results["one-pass"][0], results["passes"][0]
    for name in ("prm/log_ratio_std", "prm/ce", "process_reward/std", "policy/grad_norm"):
        assert one[1][name] == two[1][name]
        assert one[2][name] != two[2][name]
    assert two[1]["prm/loss"] < one[1]["prm/loss"]  # the mean over both passes


def test_spro_tells_of_its_reward_and_builds_no_prm(results: Any) -> None:
    """The policy starts as its own reference, so its first rewards are 0 to the last bit."""
    _, first, second = results["spro"][0]
    assert first["process_reward/std"] == 0.0 < second["process_reward/std"]
    assert "process_reward/largest_share" in second
    assert not any(name.startswith("prm/") for name in second)


def forwards(configs: str) -> list[float]:
    """Those of the first step of runs on this rank, one after the other."""
    from prime_megatron.run.assemble import open_parts
    from prime_megatron.trainer import PrimeTrainer

    torch.distributed.destroy_process_group()
    del os.environ["RANK"]
    counted = []
    for row in json.loads(configs):
        run_config = TrainConfig.model_validate_json(json.dumps(row))
        with open_parts(run_config, resume=None, overwrite=False) as parts:
            counted.append(flops.step_forwards(PrimeTrainer(run_config, parts), 1))
    return counted


def test_flops_of_a_step_are_those_of_its_plan(base: dict[str, Any], tmp_path: Path) -> None:
    """In a model that is large beside its vocabulary, whose product a head does not have."""
    large = make_model(tmp_path / "large", hidden=128, layers=2)
    replay = flops.make_recording(tmp_path / "recording.jsonl", steps=1, vocab=60)
    over = {
        "run": {"steps": 1},
        "rollout": {"replay": replay, "prompts_per_step": flops.PROMPTS},
        "packing": {"max_tokens": None},
        "models": {"policy": {"path": large}},
    }
    modes = {
        "passes": ({"prm": {"passes": 3}}, 13.0), "spro": (MODES["spro"], 5.0), "ipvrm": (MODES["ipvrm"], 8.0),
        "head": (HEAD, 6.0), "teacher": (TAUGHT, 5.0), "rlsd": (RLSD, 5.0),
    }  # fmt: skip
    runs = [
        merge(merge(merge(base, over), with_teacher(mode, large)), {"run": {"output_dir": str(tmp_path / name)}})
        for name, (mode, _) in modes.items()
    ]
    (counted,) = run_ranks(forwards, 1, json.dumps(runs), timeout_s=120.0)
    wanted = [cost for _, cost in modes.values()]
    assert [plan_step(TrainConfig.model_validate_json(json.dumps(row))).forwards for row in runs] == wanted
    assert counted == pytest.approx(wanted, rel=0.01)
