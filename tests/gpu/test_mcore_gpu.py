"""Megatron models on a GPU: no shims, NCCL, and every attention against transformers and the definition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import models as mcore_models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
LENGTHS = [70, 1, 128, 33]


@pytest.fixture
def started() -> Iterator[Any]:
    from prime_megatron.config.model import ParallelConfig
    from prime_megatron.mcore.initialize import start_megatron, stop_megatron

    yield start_megatron(ParallelConfig(), seed=1, backend="nccl", timeout_s=60)
    stop_megatron()


def _build(folder: Path, topology: Any, dtype: torch.dtype, layers: str = "local") -> Any:
    from prime_megatron.config.model import Layers, ParallelConfig
    from prime_megatron.families.read import read_config
    from prime_megatron.mcore.model import build_model
    from prime_megatron.mcore.weights import load_hf

    options: dict[str, Any] = {"wrap_ddp": False, "layers": Layers(layers)}
    chunks = build_model(read_config(folder), topology, ParallelConfig(), dtype, **options)
    load_hf(chunks, folder, topology)
    return chunks[0]


def _hidden(model: Any, topology: Any) -> torch.Tensor:
    seqs = mcore_models.sequences(LENGTHS)
    tokens, _, packed, positions = mcore_models.pack(seqs, topology, sequence_parallel=False)
    for name in ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded"):
        setattr(packed, name, getattr(packed, name).cuda())
    return model(tokens.cuda(), positions.cuda(), None, packed_seq_params=packed)[:, 0]


def test_shims_are_inert() -> None:
    from megatron.core.pipeline_parallel import schedules

    from prime_megatron.mcore.cpu import shims

    assert not shims.apply()
    assert schedules.torch is torch


@pytest.mark.parametrize("name", ["qwen2", "llama3_tied", "qwen3", "mistral_window", "mixtral"])
def test_float32_against_transformers(started: Any, tmp_path: Path, name: str) -> None:
    reference = mcore_models.make_model(tmp_path / "m", name)
    model = _build(tmp_path / "m", started, torch.float32)
    with torch.no_grad():
        got = _hidden(model, started) @ model.head_weight()[: model.family.vocab].T
    expected = mcore_models.reference_logits(reference.cuda(), [s.cuda() for s in mcore_models.sequences(LENGTHS)])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["qwen2", "mistral_window"])
def test_bfloat16_attention_and_gradients(started: Any, tmp_path: Path, name: str) -> None:
    """The variable-length kernel against the loop over sequences, values and gradients."""
    from prime_megatron.config.model import Layers
    from prime_megatron.mcore import spec
    from prime_megatron.mcore.cpu import attention

    mcore_models.make_model(tmp_path / "m", name, hidden_size=128, head_dim=32, intermediate_size=192)
    results = []
    for backend in (attention.varlen_backend(), "sdpa loop"):
        model = _build(tmp_path / "m", started, torch.bfloat16)
        for module in model.modules():
            if isinstance(module, attention.PackedAttention):
                module.backend = backend
        hidden = _hidden(model, started)
        hidden.float().square().mean().backward()
        gradient = model.decoder.layers[0].self_attention.linear_qkv.weight.grad
        results.append((hidden.float(), gradient.float()))
    (hidden, gradient), (hidden_loop, gradient_loop) = results
    assert (hidden - hidden_loop).abs().max() <= 0.05 * hidden_loop.abs().max()
    assert (gradient - gradient_loop).norm() <= 0.03 * gradient_loop.norm()
    print(json.dumps({"describe": spec.describe_layers(Layers.auto, torch.bfloat16)}))


@pytest.mark.parametrize("name", ["qwen2", "llama3_tied", "qwen3", "mistral_window", "qwen3_moe"])
def test_transformer_engine_against_ours(started: Any, tmp_path: Path, name: str) -> None:
    """Hidden states and a gradient of its layers; where it is installed."""
    pytest.importorskip("transformer_engine.pytorch", exc_type=ImportError)
    mcore_models.make_model(tmp_path / "m", name, hidden_size=128, head_dim=32, intermediate_size=192)
    results = []
    for layers in ("te", "local"):
        model = _build(tmp_path / "m", started, torch.bfloat16, layers)
        hidden = _hidden(model, started)
        hidden.float().square().mean().backward()
        results.append((hidden.float(), model.decoder.layers[0].self_attention.linear_qkv.weight.grad.float()))
    (hidden, gradient), (hidden_ours, gradient_ours) = results
    assert (hidden - hidden_ours).norm() <= 0.03 * hidden_ours.norm()
    assert (gradient - gradient_ours).norm() <= 0.05 * gradient_ours.norm()


def test_export_from_the_gpu(started: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from prime_megatron.mcore.weights import export_hf

    mcore_models.make_model(tmp_path / "m", "qwen2")
    model = _build(tmp_path / "m", started, torch.float32)
    export_hf([model], tmp_path / "out", started, tmp_path / "m")
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("m", "out"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
