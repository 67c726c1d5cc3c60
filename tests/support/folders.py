"""Hugging Face folders of random numbers, without transformers: any family, any size, any dtypes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.families.read import read_config
from prime_megatron.parallel.topology import ParallelSizes


def config_of(architecture: str, model_type: str, **sizes: Any) -> dict[str, Any]:
    """A config.json of a small model."""
    base: dict[str, Any] = {
        "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 13, "max_position_embeddings": 64,
    }  # fmt: skip
    return {"architectures": [architecture], "model_type": model_type, **base, **sizes}


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor that the folder's config.json asks for."""
    sizes = ParallelSizes(world=1)
    return {p.hf_name: p.hf_shape for p in shard_map(read_config(folder), sizes, sizes.coordinates(0))}


def write_folder(
    folder: Path, config: Mapping[str, Any], dtypes: Mapping[str, torch.dtype] | None = None, *, shards: int = 1
) -> dict[str, Tensor]:
    """Random weights (float32 where ``dtypes`` says nothing) in so many files; returns them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(shape, generator=generator).to((dtypes or {}).get(name, torch.float32))
        for name, shape in shapes_of(folder).items()
    }
    write_tensors(folder, tensors, shards=shards)
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> None:
    """As model.safetensors, or as shards with an index."""
    names = sorted(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    where = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        part = {name: tensors[name] for name in names if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of all files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def fuse_experts(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """As transformers 5 writes them: all experts of a layer in gate_up_proj [E, 2 F, H] and down_proj [E, H, F]."""
    mixtral = config["model_type"] == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    fused = {name: tensor for name, tensor in tensors.items() if f".{block}." not in name}
    for layer in range(config["num_hidden_layers"]):
        at, to = f"model.layers.{layer}.{block}.", f"model.layers.{layer}.mlp."

        def stack(name: str, at: str = at) -> Tensor:
            return torch.stack([tensors[f"{at}experts.{i}.{name}.weight"] for i in range(config["num_experts"])])

        fused[f"{to}experts.gate_up_proj"] = torch.cat([stack(gate), stack(up)], 1)
        fused[f"{to}experts.down_proj"] = stack(down)
        fused[f"{to}gate.weight"] = tensors[f"{at}gate.weight"]
    return fused
