"""Shared segments and checksums of weights, without an engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prime_megatron.errors import RunError
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.types import Bucket
from prime_megatron.weights.folder import WeightFolder
from prime_megatron.weights.manifest import Manifest, compare
from prime_megatron.weights.segment import attach, bit_sums, open_segment


@pytest.fixture
def path() -> Iterator[str]:
    """A file without a name, as the trainer makes it."""
    file = os.memfd_create("test")
    yield f"/proc/{os.getpid()}/fd/{file}"
    os.close(file)


def small(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 5), nn.Linear(5, 2, bias=False).bfloat16())
    model[0].double()
    return model


def test_a_model_lives_in_its_segment(path: str) -> None:
    model = small()
    attach(model, path)
    seen = open_segment(path)
    assert list(seen) == ["0.weight", "0.bias", "1.weight"]
    assert [tensor.dtype for tensor in seen.values()] == [torch.float64, torch.float64, torch.bfloat16]
    for name, param in model.named_parameters():
        assert param.shape == seen[name].shape
        assert not param.any(), "a new segment is empty"
        seen[name].copy_(torch.randn(param.shape))
        assert torch.equal(param, seen[name])
    assert bit_sums(model.named_parameters()) == bit_sums(seen.items())


def test_a_second_model_finds_the_first_ones_weights(path: str) -> None:
    first, second = small(0), small(1)
    attach(first, path)
    with torch.no_grad():
        first[0].weight.fill_(2.5)
    attach(second, path)
    assert torch.equal(second[0].weight, torch.full((5, 3), 2.5, dtype=torch.float64))


def test_tied_parameters_stay_tied(path: str) -> None:
    model = nn.ModuleDict({"embed": nn.Linear(4, 6, bias=False), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    attach(model, path)
    open_segment(path)["embed.weight"].fill_(1.0)
    assert model["head"].weight.sum() == 24


def test_a_segment_of_another_model_and_packed_weights_are_refused(path: str) -> None:
    attach(small(), path)
    with pytest.raises(RuntimeError, match="another model"):
        attach(small(width=4), path)
    packed = small()
    packed[1].weight.data = torch.empty(0, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"1\.weight"):
        attach(packed, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_bit_sums_are_those_of_the_bits_and_add_up(dtype: torch.dtype) -> None:
    tensor = (torch.randn(7, 9) * 50).to(dtype)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    with np.errstate(over="ignore"):
        expected = int(tensor.view(integers).numpy().astype(np.int64).sum(dtype=np.int64))
    whole = bit_sums([("x", tensor)])["x"]
    assert whole == expected
    parts = bit_sums([("top", tensor[:4]), ("left", tensor[4:, :5]), ("right", tensor[4:, 5:])])
    assert (sum(parts.values()) - whole) % 2**64 == 0


def test_a_spool_is_a_folder_of_the_last_update(tmp_path: Path) -> None:
    spool = WeightFolder(tmp_path / "spool", None)
    for name in ("q", "k"):
        tensor = torch.randn(4, 3)
        file = spool.write(Bucket([name], [tensor], 0))
        assert torch.equal(load_file(file)[name], tensor)
    assert len(spool.files) == 2
    spool.begin()
    assert spool.files == [] and not list(spool.folder.iterdir())
    spool.close()
    assert not spool.folder.exists()


def test_checksums_of_fused_tensors_add_up_over_buckets() -> None:
    q, k = torch.randn(4, 3), torch.randn(2, 3)
    pieces = [
        ShardSlice("qk", 0, ((0, 2), (0, 3)), "q", ((2, 4), (0, 3)), (4, 3)),
        ShardSlice("qk", 0, ((2, 4), (0, 3)), "k", ((0, 2), (0, 3)), (2, 3)),
    ]
    manifest = Manifest([pieces], torch.bfloat16, 1)
    manifest.begin()
    manifest.take(Bucket(["k"], [k], 0))
    with pytest.raises(RunError, match="version 4: 1 tensors are missing, such as q"):
        manifest.complete(4)
    manifest.take(Bucket(["q"], [q], 0))
    manifest.complete(4)
    fused = torch.cat([q[2:], k]).bfloat16()
    assert manifest.sums() == [bit_sums([("qk", fused)])]


def test_a_difference_is_told_by_rank_and_name() -> None:
    compare([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}], 3)
    with pytest.raises(RunError, match=r"version 3: 1 tensors of engine rank 1 .* a$"):
        compare([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 5}], 3)
    with pytest.raises(RunError, match=r"rank 0 .* b$"):
        compare([{"a": 1, "b": 2}], [{"a": 1}], 3)
