"""Every family in every layout against transformers, and back into a folder bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

LENGTHS = [7, 1, 12, 9, 30]
MOE = [name for name in mcore_models.FAMILIES if "moe" in name or name == "mixtral"]
DENSE = [name for name in mcore_models.FAMILIES if name not in MOE]
LOOSE = [*MOE, *(name for name in DENSE if name.endswith(("bias", "biases", "yarn", "windows")))]
"""Within 1e-5, the others within 1e-6."""
TWO_RANKS: list[dict[str, Any]] = [
    {"tensor": 2, "sequence": True},
    {"pipeline": 2, "pipeline_layers": (3, 1)},
    {"context": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
]
DENSE_ONLY: list[dict[str, Any]] = [{"tensor": 2}]
MOE_ONLY: list[dict[str, Any]] = [
    {"expert": 2},
    {"expert": 2, "tensor": 2, "sequence": True},
    {"tensor": 2, "expert_tensor": 2, "sequence": True},
]
FOUR_RANKS: list[dict[str, Any]] = [
    {"tensor": 2, "pipeline": 2, "sequence": True},
    {"pipeline": 4},
    {"tensor": 2, "context": 2},
    {"tensor": 4, "sequence": True},  # more ranks than key-value heads, and a vocabulary that needs padding
]


def _logits_and_exports(folders: dict[str, str], layouts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """For each model and layout its logits; the model is exported beside its folder."""
    from prime_megatron.mcore.weights import export_hf

    results: dict[str, list[Any]] = {}
    for name, folder in folders.items():
        results[name] = []
        for index, layout in enumerate(layouts):
            if "expert" in "".join(layout) and name not in MOE:
                continue
            if layout == {"tensor": 2} and name in MOE:
                continue
            topology, chunks = mcore_models.start(layout, folder)
            seqs = mcore_models.sequences(LENGTHS)
            results[name].append(mcore_models.logits(chunks, topology, [seqs[:2], seqs[2:]]))
            # Small files, so that the index is exercised, too.
            export_hf(chunks, f"{folder}_out{index}", topology, folder, max_file_bytes=30_000)
            mcore_models.restart()
    return results


def _check(tmp_path: Path, names: list[str], layouts: list[dict[str, Any]], world: int) -> None:
    expected = {}
    for name in names:
        model = mcore_models.make_model(tmp_path / name, name)
        expected[name] = mcore_models.reference_logits(model, mcore_models.sequences(LENGTHS))
    folders = {name: str(tmp_path / name) for name in names}
    ranks = run_ranks(_logits_and_exports, world, folders, layouts, timeout_s=240)
    for name in names:
        count = len(ranks[0][name])
        assert count
        for index in range(count):
            logits = [rank[name][index] for rank in ranks if rank[name][index] is not None]
            assert logits
            for got in logits:
                difference = (got - expected[name]).abs().max().item()
                assert difference <= (1e-5 if name in LOOSE else 1e-6), (name, index, difference)
        _check_exports(tmp_path, name, count)


def _check_exports(tmp_path: Path, name: str, count: int) -> None:
    original = load_file(tmp_path / name / "model.safetensors")
    outs = sorted(tmp_path.glob(f"{name}_out*"))
    assert len(outs) == count
    for out in outs:
        exported: dict[str, torch.Tensor] = {}
        for file in out.glob("*.safetensors"):
            exported.update(load_file(file))
        assert exported.keys() == original.keys()
        for tensor_name, tensor in original.items():
            assert exported[tensor_name].dtype == tensor.dtype
            assert torch.equal(exported[tensor_name], tensor), (out, tensor_name)
        assert (out / "config.json").read_bytes() == (tmp_path / name / "config.json").read_bytes()
        assert not list(tmp_path.glob(".*partial"))


def test_every_family_on_one_rank(tmp_path: Path) -> None:
    _check(tmp_path, [*DENSE, *MOE], [{}], 1)


@pytest.mark.parametrize("names", [DENSE, MOE], ids=["dense", "moe"])
def test_every_family_on_two_ranks(tmp_path: Path, names: list[str]) -> None:
    _check(tmp_path, names, [*TWO_RANKS, *DENSE_ONLY, *MOE_ONLY], 2)


def test_combined_layouts_on_four_ranks(tmp_path: Path) -> None:
    _check(tmp_path, ["qwen2", "qwen2_tied", "qwen3_odd"], FOUR_RANKS, 4)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_in_one_tensor_a_layer(tmp_path: Path, name: str) -> None:
    """As transformers 5 saves them on request; read by rank, and exported apart."""
    model = mcore_models.make_model(tmp_path / name, name)
    apart = load_file(tmp_path / name / "model.safetensors")
    model.save_pretrained(tmp_path / name, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / name / "model.safetensors")
    expected = mcore_models.reference_logits(model, mcore_models.sequences(LENGTHS))
    layouts = [{"expert": 2}, {"tensor": 2, "sequence": True, "expert_tensor": 2}]
    ranks = run_ranks(_logits_and_exports, 2, {name: str(tmp_path / name)}, layouts, timeout_s=240)
    for index in range(len(layouts)):
        assert (ranks[0][name][index] - expected).abs().max().item() <= 1e-5
        exported: dict[str, torch.Tensor] = {}
        for file in Path(f"{tmp_path / name}_out{index}").glob("*.safetensors"):
            exported |= load_file(file)
        assert exported.keys() == apart.keys()
        assert all(torch.equal(tensor, apart[key]) for key, tensor in exported.items())


def test_export_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = mcore_models.make_model(tmp_path / "qwen2", "qwen2")
    run_ranks(_logits_and_exports, 2, {"qwen2": str(tmp_path / "qwen2")}, [{"tensor": 2}])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2_out0")
    saved = model.state_dict()
    assert again.state_dict().keys() == saved.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
