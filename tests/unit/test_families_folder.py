"""Faults of a model folder, each one line; and the safetensors writer against safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prime_megatron.errors import InputError
from prime_megatron.families.folder import (
    INDEX,
    SINGLE,
    HfFolder,
    SafetensorsStream,
    TensorSpec,
    split_files,
    write_index,
)
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.families.read import read_config
from prime_megatron.parallel.topology import ParallelSizes

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "vocab_size": 11,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in two files."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    whole = ParallelSizes(world=1)
    shapes = {p.hf_name: p.hf_shape for p in shard_map(read_config(tmp_path), whole, whole.coordinates(0))}
    names = sorted(shapes)
    files = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in files.items():
        save_file({name: torch.zeros(shapes[name]) for name in part}, tmp_path / file)
    specs = {file: [TensorSpec(n, shapes[n], torch.float32) for n in part] for file, part in files.items()}
    write_index(tmp_path, specs)
    return tmp_path


def _error(folder: Path) -> str:
    with pytest.raises(InputError) as error, HfFolder(folder, read_config(folder)) as source:
        source.check()
    assert "\n" not in str(error.value)
    return str(error.value)


def _edit_index(folder: Path, **changes: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, file in changes.items():
        if file is None:
            del index["weight_map"][name]
        else:
            index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def test_whole(folder: Path) -> None:
    with HfFolder(folder, read_config(folder)) as source:
        source.check()
        assert source.slice("model.norm.weight")[2:5].shape == (3,)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert f"{tmp_path}: neither {SINGLE} nor {INDEX}" in _error(tmp_path)


def test_missing_file(folder: Path) -> None:
    (folder / "b.safetensors").unlink()
    assert f"{folder / 'b.safetensors'}: missing" in _error(folder)


def test_truncated_file(folder: Path) -> None:
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert f"{path}: not a whole safetensors file" in _error(folder)


def test_truncated_single_file(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / SINGLE).write_bytes((folder / "a.safetensors").read_bytes()[:20])
    assert f"{folder / SINGLE}: not a whole safetensors file" in _error(folder)


def test_tensor_missing_from_index(folder: Path) -> None:
    _edit_index(folder, **{"model.norm.weight": None})
    assert f"{folder / 'b.safetensors'}: tensor model.norm.weight is not in {INDEX}" in _error(folder)


def test_tensor_missing_from_file(folder: Path) -> None:
    _edit_index(folder, **{"lm_head.weight": "b.safetensors"})
    message = _error(folder)
    assert f"{folder / 'b.safetensors'}: tensor lm_head.weight is missing" in message
    assert INDEX in message


def test_shape_disagrees(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 12}))
    message = _error(folder)
    assert "is [11, 8], config.json says [12, 8]" in message
    assert "safetensors: tensor" in message


def test_unknown_tensor(folder: Path) -> None:
    save_file({"model.layers.0.self_attn.q_proj.bias": torch.zeros(8)}, folder / "c.safetensors")
    _edit_index(folder, **{"model.layers.0.self_attn.q_proj.bias": "c.safetensors"})
    assert "q_proj.bias is not part of a LlamaForCausalLM" in _error(folder)


def test_bad_index(folder: Path) -> None:
    (folder / INDEX).write_text("{}")
    assert "not a safetensors index" in _error(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "../b.safetensors"}}))
    assert "outside the folder" in _error(folder)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
        ),
        min_size=1,
        max_size=6,
    )
)
def test_stream_is_read_by_safetensors(tmp_path_factory: pytest.TempPathFactory, shapes: list) -> None:
    path = tmp_path_factory.mktemp("stream") / "x.safetensors"
    tensors = {f"t{i}": torch.randn(shape) for i, (shape, _) in enumerate(shapes)}
    specs = [TensorSpec(f"t{i}", tuple(shape), dtype) for i, (shape, dtype) in enumerate(shapes)]
    stream = SafetensorsStream(path, specs)
    for name, tensor in tensors.items():
        stream.write(name, tensor)
    stream.close()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for spec in specs:
        assert loaded[spec.name].dtype is spec.dtype
        assert torch.equal(loaded[spec.name], tensors[spec.name].to(spec.dtype))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(4, 200))
def test_split_files(counts: list[int], limit: int) -> None:
    specs = [TensorSpec(str(i), (count,), torch.float32) for i, count in enumerate(counts)]
    files = split_files(specs, limit)
    assert [spec for file in files for spec in file] == specs
    for file in files:
        assert file
        assert len(file) == 1 or sum(spec.nbytes for spec in file) <= limit
