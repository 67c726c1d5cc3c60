"""Gradients in every layout against transformers' own autograd: the strongest check of a layout."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packaging.version import Version
from safetensors.torch import load_file

from prime_megatron.mcore.versions import installed
from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

LENGTHS = [7, 3, 12, 9, 16, 5, 8, 4]
NUM_TARGETS = sum(LENGTHS) - len(LENGTHS)
PLAIN = {"distributed_optimizer": False}
TWO_RANKS: list[dict[str, Any]] = [
    {},
    {"overlap_grad_reduce": True},
    {"tensor": 2, "recompute": "selective"},
    {"tensor": 2, "sequence": True, "recompute": "full"},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"context": 2},
]
MOE_RANKS: list[dict[str, Any]] = [
    {},
    {"expert": 2},
    {"expert": 2, "tensor": 2, "sequence": True},
    {"tensor": 2, "sequence": True, "expert_tensor": 2},
    {"tensor": 2, "sequence": True},
    {"context": 2},
]


def _export_gradients(folder: str, layouts: list[dict[str, Any]]) -> None:
    """One forward and backward of the mean next-token loss per layout; gradients exported like weights.

    The layers take oneDNN's products although the weights are small; test_mcore_parity.py takes Megatron's.
    """
    from prime_megatron.mcore.cpu import shims

    shims.apply()
    from prime_megatron.mcore.cpu import linear

    linear.MIN_WEIGHTS = 0
    for index, layout in enumerate(layouts):
        topology, chunks = mcore_models.start({**layout, **PLAIN}, folder, ddp=True)
        _backward(chunks, topology)
        _write_gradients(chunks, topology, folder, f"{folder}_grad{index}")
        mcore_models.restart()


def _backward(chunks: Any, topology: Any) -> None:
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        vocab_parallel_cross_entropy,
    )

    from prime_megatron.mcore.model import unwrap

    config = unwrap(chunks[0]).config
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    mine = mcore_models.sequences(LENGTHS)[topology.at.data :: topology.sizes.data]
    half = len(mine) // 2
    batches = [mine[:half], mine[half:]]
    micro = [mcore_models.pack(seqs, topology, sequence_parallel=config.sequence_parallel) for seqs in batches]

    def loss(index: int, hidden: torch.Tensor, model: Any) -> Any:
        seqs, source = batches[index], micro[index][1]
        weight = unwrap(model).head_weight()
        if config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        scores = hidden[:, 0] @ weight.T
        rows = torch.arange(len(weight)) + topology.at.tensor * len(weight)
        scores = scores.masked_fill(rows >= unwrap(model).family.vocab, -1e9)
        target = torch.cat([torch.cat((seq[1:], torch.tensor([-1]))) for seq in seqs])
        target = torch.cat((target, torch.tensor([-1])))[source]
        losses = vocab_parallel_cross_entropy(scores[:, None], target.clamp(min=0)[:, None])[:, 0]
        return (losses * (target >= 0)).sum() / NUM_TARGETS, None

    for chunk in chunks:
        chunk.zero_grad_buffer()
    mcore_models.run(chunks, micro, loss, train=True)


def _write_gradients(chunks: Any, topology: Any, source: str, target: str) -> None:
    from prime_megatron.mcore.weights import export_hf, local_pieces

    with torch.no_grad():
        for param, pieces in local_pieces(chunks, topology):
            covered = torch.zeros(param.shape, dtype=torch.bool)
            for piece in pieces:
                covered[tuple(slice(*bounds) for bounds in piece.local)] = True
            # Padding, of the vocabulary and of attention groups, must stay zero in training.
            assert not param.main_grad[~covered].any()
            param.copy_(param.main_grad)
    dist.barrier()
    export_hf(chunks, target, topology, source)


def _reference_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for seq in mcore_models.sequences(LENGTHS):
        logits = model(seq[None]).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, seq[1:], reduction="sum") / NUM_TARGETS).backward()
    return {name: param.grad for name, param in model.named_parameters()}


def _export_unmarked(folder: str, layouts: list[dict[str, Any]]) -> None:
    """The same with experts as upstream alone marks them."""
    from prime_megatron.mcore import model

    model._separate_experts = lambda *_: None
    _export_gradients(folder, layouts)


def _check(
    tmp_path: Path, name: str, layouts: list[dict[str, Any]], world: int, export: Any = _export_gradients
) -> None:
    folder = tmp_path / name
    model = mcore_models.make_model(folder, name)
    run_ranks(export, world, str(folder), layouts, timeout_s=240)
    expected = _reference_gradients(model)
    for index, layout in enumerate(layouts):
        found = load_file(f"{folder}_grad{index}/model.safetensors")
        for tensor_name, gradient in found.items():
            reference = _as_saved(expected, tensor_name)
            difference = (gradient - reference).abs().max().item()
            assert difference <= 2e-6, (layout, tensor_name, difference)
            assert reference.abs().max() > 1e-5, tensor_name


def _as_saved(gradients: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """transformers keeps a layer's experts in one tensor and saves them apart."""
    if name in gradients:
        return gradients[name]
    if ".experts." not in name:
        return gradients[name.replace("block_sparse_moe", "mlp")]
    head, tail = name.replace("block_sparse_moe", "mlp").split(".experts.")
    expert, kind = int(tail.split(".")[0]), tail.split(".")[1]
    if kind in ("w2", "down_proj"):
        return gradients[f"{head}.experts.down_proj"][expert]
    gate, up = gradients[f"{head}.experts.gate_up_proj"][expert].chunk(2)
    return gate if kind in ("w1", "gate_proj") else up


def test_dense_two_ranks(tmp_path: Path) -> None:
    _check(tmp_path, "qwen2", TWO_RANKS, 2)


def test_tied_two_ranks(tmp_path: Path) -> None:
    _check(tmp_path, "llama3_tied", TWO_RANKS, 2)


def test_norms_on_queries_and_keys(tmp_path: Path) -> None:
    _check(tmp_path, "qwen3", [{"tensor": 2, "sequence": True}, {"tensor": 2}], 2)


def test_padded_attention_groups(tmp_path: Path) -> None:
    for name in ("qwen3_odd", "qwen2_odd"):
        _check(tmp_path, name, [{"tensor": 2, "sequence": True}, {"tensor": 2}], 2)


def test_biases(tmp_path: Path) -> None:
    """Of the output projections every tensor-parallel rank has a copy, whose gradient sequence parallelism splits."""
    _check(tmp_path, "llama_biases", [{"tensor": 2, "sequence": True}, {"tensor": 2}], 2)


def test_experts_two_ranks(tmp_path: Path) -> None:
    _check(tmp_path, "mixtral", MOE_RANKS, 2)


def test_experts_as_upstream_marks_them(tmp_path: Path) -> None:
    """Before 0.19 an expert's gradient lacks the tokens of its replicas on other tensor-parallel ranks."""
    right = installed() >= Version("0.19")
    with contextlib.nullcontext() if right else pytest.raises(AssertionError, match="experts"):
        _check(tmp_path, "mixtral", [{"tensor": 2, "sequence": True}], 2, _export_unmarked)


def test_raw_expert_weights(tmp_path: Path) -> None:
    _check(tmp_path, "qwen3_moe_raw", [{}], 1)


def test_four_ranks(tmp_path: Path) -> None:
    layouts = [{"tensor": 2, "pipeline": 2, "sequence": True}, {"tensor": 4, "sequence": True}, {"tensor": 2}]
    _check(tmp_path, "qwen2_tied", layouts, 4)
