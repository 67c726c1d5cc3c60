"""vLLM in the trainer's own processes (its external launcher), at TP1 and TP2, in lockstep with the trainer's ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.rollout.recording import read_recording
from tests.engines import cases
from tests.engines.in_process_ranks import serve
from tests.support import toy
from tests.support.models import make_model
from tests.support.ranks import run_ranks
from tests.support.runs import TIMINGS, differences, read_lines, train_rank

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return cases.two_models(tmp_path_factory.mktemp("models"))


def settings(model: str, prompts: str, output: Path, rollout: dict[str, Any], **parallel: Any) -> dict[str, Any]:
    hosted = {"engine": "vllm", "start_timeout_s": 300.0, "sampling": {"max_response_tokens": 40}}
    vllm = {"cpu_cache_bytes": 64 << 20, "in_process": True}
    return toy.settings(
        model, prompts, output, parallel={"timeout_s": 200.0, **parallel}, rollout={**hosted, "vllm": vllm, **rollout}
    )


@pytest.mark.parametrize(("tensor", "transport"), [(1, "auto"), (2, "auto"), (2, "bucket")])
def test_weights_answers_and_a_common_end(tensor: int, transport: str, models: tuple[str, str], tmp_path: Path) -> None:
    config = settings(models[0], "prompts", tmp_path, {"tensor": tensor, "transport": transport})
    found = run_ranks(serve, 2, json.dumps(config), *models, timeout_s=250.0)
    for rank in found:
        assert rank["undisturbed"]
        assert rank["differing"] == []
        assert max(rank["gaps"]) < cases.PARITY
        assert rank["stopped"] == "enough"
        assert rank["again"]
        assert rank["ranks"] == 2
    assert found[0]["answers"] == found[1]["answers"], "responses depend on their own seeds alone"
    if transport == "bucket":
        unknown, missing, changed = zip(*(rank["errors"] for rank in found), strict=True)
        assert set(unknown) == {"weight sync: the engine's model has no tensor nope"}
        assert set(missing) == {"weight sync of version 2: 1 tensors are missing, such as model.norm.weight"}
        assert len(set(changed)) == 1 and "differ from the trainer's, the first is model.norm.weight" in changed[0]


def test_a_run_is_the_same_as_with_vllm_in_a_process_of_its_own(tmp_path: Path) -> None:
    """PP2 with an engine over both ranks: the same responses and metrics, whoever hosts the engine."""
    model, prompts = toy.make_model(tmp_path / "model", hidden=128), toy.make_prompts(tmp_path / "prompts.jsonl")
    rows, groups = [], []
    for name, vllm in (("own", {"in_process": False}), ("beside", {"in_process": True})):
        rollout = {
            "tensor": 2,
            "record": str(tmp_path / f"{name}.jsonl"),
            "vllm": {"cpu_cache_bytes": 64 << 20, **vllm},
        }
        run = settings(model, prompts, tmp_path / name, rollout, pipeline=2)
        assert run_ranks(train_rank, 2, json.dumps(run), timeout_s=280.0) == [0, 0]
        rows.append(read_lines(run, "metrics.jsonl"))
        groups.append(read_recording(rollout["record"]))
        assert max(row["engine/logprob_gap_max"] for row in rows[-1][1:]) < cases.PARITY
    assert [row["step"] for row in rows[1]] == [0, 1, 2, 3]
    made = [[[s.token_ids for g in by_step[step] for s in g.samples] for step in (1, 2, 3)] for by_step in groups]
    assert made[0] == made[1]
    assert max(differences(*rows, skip=TIMINGS).values()) < 1e-5


@pytest.mark.parametrize(("tensor", "transport"), [(2, "auto"), (1, "bucket")])
def test_a_run_with_experts_on_two_ranks(tensor: int, transport: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "moe_intermediate_size": 64, "head_dim": 32, "vocab_size": 65}
    make_model(tmp_path / "model", "qwen3_moe", **sizes)
    toy.make_tokenizer().save_pretrained(tmp_path / "model")
    prompts = toy.make_prompts(tmp_path / "prompts.jsonl")
    rollout = {"tensor": tensor, "transport": transport}
    run = settings(str(tmp_path / "model"), prompts, tmp_path / "run", rollout, expert=2)
    assert run_ranks(train_rank, 2, json.dumps(run), timeout_s=280.0) == [0, 0]
    rows = read_lines(run, "metrics.jsonl")[1:]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["engine/tokens"] > 0 and row["engine/logprob_gap_max"] < cases.PARITY for row in rows)
    assert max(row["policy/grad_norm"] for row in rows) > 0.1, "weights change between the syncs"
