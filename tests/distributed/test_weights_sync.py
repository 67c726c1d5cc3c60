"""From every training layout into fused engine tensors, with real Megatron roles: equal to the export bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import reshard_ranks
from tests.support.models import make_model
from tests.support.ranks import run_ranks

DENSE: list[dict[str, Any]] = [
    {},
    {"tensor": 2},
    {"tensor": 4},
    {"tensor": 2, "sequence": True},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"pipeline": 2, "pipeline_layers": [3, 1]},
    {"tensor": 2, "pipeline": 2},
    {"context": 2, "tensor": 2},
]
MOE: list[dict[str, Any]] = [
    {"expert": 4},
    {"expert": 2, "tensor": 2, "sequence": True},
    {"expert": 2, "expert_tensor": 2, "tensor": 2, "sequence": True},
    {"expert": 2, "pipeline": 2},
    {"expert_tensor": 2},
]
EMBEDDED: list[dict[str, Any]] = [
    {"expert": 2},
    {"expert": 2, "tensor": 2, "expert_tensor": 1, "sequence": True},
    {"pipeline": 2},
    {"pipeline": 2, "pipeline_layers": [3, 1], "expert": 2},
    {"tensor": 2, "sequence": True},
    {"expert_tensor": 2},
]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    make_model(tmp_path / "model", "qwen2")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("model", "layouts", "engines"),
    [("qwen2", DENSE, (1, 2)), ("qwen2_tied", DENSE[:8:2], (2,)), ("qwen3", DENSE[1::3], (1, 4))],
)
def test_every_dense_layout(model: str, layouts: list[Any], engines: tuple[int, ...], tmp_path: Path) -> None:
    make_model(tmp_path / "model", model)
    jobs = [(layout, engine) for layout in layouts for engine in engines]
    results = run_ranks(
        reshard_ranks.every_layout, 4, str(tmp_path / "model"), str(tmp_path / "out"), json.dumps(jobs), timeout_s=200
    )
    assert results == [[]] * 4


def test_every_expert_layout(tmp_path: Path) -> None:
    make_model(tmp_path / "model", "qwen3_moe")
    jobs = [(layout, engine) for layout in MOE for engine in (1, 2)]
    results = run_ranks(
        reshard_ranks.every_layout, 4, str(tmp_path / "model"), str(tmp_path / "out"), json.dumps(jobs), timeout_s=200
    )
    assert results == [[]] * 4


@pytest.mark.parametrize("model", ["qwen3_moe", "mixtral", "mistral_window"])
def test_every_layout_into_the_embedded_engine(model: str, tmp_path: Path) -> None:
    """Against transformers' own reading of the export: a layer's experts are one tensor there."""
    make_model(tmp_path / "model", model)
    jobs = DENSE[3:8:2] if model == "mistral_window" else EMBEDDED
    results = run_ranks(
        reshard_ranks.embedded, 4, str(tmp_path / "model"), str(tmp_path / "out"), json.dumps(jobs), timeout_s=200
    )
    assert results == [[]] * 4


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.qkv_proj.weight", "model.layers.3.mlp.down_proj.weight"])
def test_a_changed_tensor_is_named_on_every_rank(name: str, folder: str, tmp_path: Path) -> None:
    """One element on one rank: of a tensor that travelled to it, and of one that it copied from itself."""
    errors = run_ranks(reshard_ranks.spoiled, 4, folder, str(tmp_path / "out"), name)
    message = f"weight sync of policy version 1: 1 engine tensors differ from the trainer's, the first is {name}"
    assert errors == [message] * 4


@pytest.mark.parametrize(("train", "engine"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_engine_of_another_dtype(train: str, engine: str, folder: str, tmp_path: Path) -> None:
    assert run_ranks(reshard_ranks.other_dtype, 2, folder, str(tmp_path / "out"), train, engine) == [[], []]


@pytest.mark.parametrize(
    ("parallel", "receivers"),
    [
        ({"tensor": 2, "pipeline": 2}, [0]),
        ({"pipeline": 2}, [0]),
        ({"pipeline": 4}, [0, 2]),
        ({"pipeline": 4}, [3, 1, 0]),
    ],
)
def test_whole_tensors_by_name(parallel: dict[str, int], receivers: list[int], folder: str, tmp_path: Path) -> None:
    """On one rank, on two of four (sent to each), on three (broadcast)."""
    settings = json.dumps(parallel), json.dumps(receivers)
    results = run_ranks(reshard_ranks.named, 4, folder, str(tmp_path / "out"), *settings)
    counts = {len(result["buckets"]) for result in results}
    assert len(counts) == 1 and counts.pop() > 3, "every rank sees the same buckets"
    for result in results:
        assert result["wrong"] == [] and result["version"] == 5
        if result["receives"]:
            assert result["missing"] == []
            assert max(result["buckets"]) <= max(reshard_ranks.BUCKET_BYTES, result["largest_tensor"])
        else:
            assert set(result["buckets"]) == {0}
