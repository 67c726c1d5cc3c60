"""Every config key is read by the package: traced by its full path over the verbs that take a config."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prime_megatron.config import PrmConfig, SftConfig, TrainConfig
from prime_megatron.errors import RunEnded
from tests.support.prm_kinds import KINDS, RLSD, with_teacher
from tests.support.prm_runs import make_labelled, prm_config
from tests.support.ranks import run_ranks
from tests.support.suites import make_suite
from tests.support.toy import make_model, make_prompts, make_sft, merge, settings
from tests.support.tracing import ROOTS, leaves, recorded_reads


def trace(folder: str, live: str, replayed: str, sft: str, prm: str) -> list[str]:
    """On one rank: every run in turn; returns the full paths of the keys that were read."""
    from prime_megatron.cli.main import main
    from prime_megatron.prm import train_prm_alone
    from prime_megatron.run.engines import driver_settings, engine_limits
    from prime_megatron.run.transport import describe_engine
    from prime_megatron.sft import train_sft
    from prime_megatron.trainer import train
    from prime_megatron.verify.code.verifier import CodeWorker

    torch.distributed.destroy_process_group()
    del os.environ["RANK"]
    with recorded_reads() as reads, contextlib.redirect_stdout(io.StringIO()):
        *whole, starving = json.loads(live)
        for row in (*whole, *json.loads(replayed)):
            assert train(TrainConfig.model_validate(row, strict=False), resume=None, overwrite=False) == 0
        with pytest.raises(RunEnded):
            train(TrainConfig.model_validate(starving, strict=False), resume=None, overwrite=False)
        assert train_sft(SftConfig.model_validate(json.loads(sft), strict=False), resume=None, overwrite=False) == 0
        for row in json.loads(prm):
            assert train_prm_alone(PrmConfig.model_validate(row, strict=False), resume=None, overwrite=False) == 0
        words = ["score", f"{folder}/straight/model", f"{folder}/held_out.jsonl", "--output", f"{folder}/scored.jsonl"]
        assert main([*words, "dtype=float32", 'step_delimiter="\\n"']) == 0
        for words in ("validate run", "plan-step run", "slurm run", "validate sft", "validate prm"):
            verb, name = words.split()
            assert main([verb, f"{folder}/{name}.yaml"]) == 0
        for engine in ("sglang", "vllm"):
            row = merge(json.loads(live)[0], {"rollout": {"engine": engine}})
            config = TrainConfig.model_validate(row, strict=False)
            describe_engine(config)
            driver_settings(config, (1,))
            engine_limits(config)
            CodeWorker(config.verify.code).discard()
    return sorted(reads)


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder: Path = tmp_path_factory.mktemp("wiring")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl")
    bad = {"prompt": [{"role": "user", "content": "2"}], "ability": "code", "reward_model": {"ground_truth": "{"}}
    with open(prompts, "a") as file:
        file.write(json.dumps(bad) + "\n")
    base = settings(model, prompts, folder / "live", run={"steps": 2}, data={"eval": [prompts], "bad_truth": "skip"})
    live = merge(
        base,
        {
            "rollout": {"record": str(folder / "raw.jsonl"), "oversample": 2.0, "filter": {"lower": 0.0, "upper": 1.0}},
            "log": {"tensorboard": True},
            "data": {"draw": "teaching"},
            "eval": make_suite(folder / "suite"),
            "checkpoint": {"every": 1, "save_final": True, "export_final": True},
        },
    )
    replay = {"rollout": {"engine": "replay", "replay": str(folder / "raw.jsonl")}}
    modes: dict[str, dict[str, Any]] = {
        "kl": {
            "policy": {"kl_place": "loss", "kl_coef": 0.1, "importance_cap": 2.0, "importance_mode": "mask"},
            "prm": {
                "update": "reverse",
                "loss": "prefix_value",
                "difficulty_weights": True,
                "health": {"every": 1},
            },
            "eval": {"prm_rows": [make_labelled(folder / "held.jsonl")]},  # the model's own answers are all wrong
        },
        "critic": {
            "advantage": {"estimator": "gae", "overlong_buffer": 5},
            "prm": {"granularity": "step", "step_delimiter": "e", "health": {"every": 1}},
        },
        "plain": {"advantage": {"estimator": "grpo"}, "prm": {"use_gt": True, "loss": "bon_rm", "update": "reverse"}},
    }
    modes["rlsd"] = merge(RLSD, {"rollout": {"engine": "embedded", "replay": None}})
    modes["iw-opd"] = with_teacher(KINDS["iw-opd"], model)
    nothing_passes = {"lower": 0.9, "upper": 0.95, "max_rounds": 1}
    starving = merge(base, {"run": {"output_dir": str(folder / "starving")}, "rollout": {"filter": nothing_passes}})
    base_of = {name: merge(merge(base, replay), {"run": {"output_dir": str(folder / name)}}) for name in modes}
    replayed = [merge(base_of[name], mode) for name, mode in modes.items()]
    sft = {
        "run": {"output_dir": str(folder / "sft"), "steps": 2},
        "model": model,
        "dtype": "float32",
        "data": {"train": [make_sft(folder / "sft.jsonl")], "held_out": [make_sft(folder / "held_sft.jsonl", 4)]},
        "batch_size": 4,
        "checkpoint": {"every": 1},
        "log": {"tensorboard": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(merge(base, {"launch": {"nodes": 2}})))
    (folder / "sft.yaml").write_text(yaml.safe_dump(sft))
    prm = prm_config(folder, prm={"beta": 0.5, "loss": "bon_rm"}, eval_every=2)
    (folder / "prm.yaml").write_text(yaml.safe_dump(prm))
    prefixes = prm_config(folder, run={"output_dir": str(folder / "prefixes"), "steps": 1})
    both = [
        prm,
        merge(
            prefixes, {"prm": {"loss": "prefix_value", "difficulty_weights": True}, "optimizer": {"warmup_steps": 0}}
        ),
    ]
    texts = (json.dumps(value) for value in ([live, starving], replayed, sft, both))
    ((*found,),) = run_ranks(trace, 1, str(folder), *texts, timeout_s=280.0)
    return set(found)


# Read by the config package itself: load.py puts a preset's settings below what the file says.
USED_UP = {"train.preset"}


def unread(reads: set[str]) -> list[str]:
    return sorted({leaf for root, name in ROOTS.items() for leaf in leaves(root, name)} - reads - USED_UP)


def test_every_key_is_read(reads: set[str]) -> None:
    assert unread(reads) == []


def test_a_key_that_nothing_reads_is_found(reads: set[str]) -> None:
    assert unread(reads - {"train.prm.beta"}) == ["train.prm.beta"]
