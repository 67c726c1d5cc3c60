"""config.json in the spellings of several releases of transformers: the logits are transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support import models
from tests.support.ranks import run_ranks

LENGTHS = [7, 30]
GONE = object()
LINEAR = {"type": "linear", "factor": 3.0}
YARN = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": GONE, "rope_theta": 300.0}),
    ("llama", {"rope_parameters": GONE, "rope_theta": 300.0, "rope_scaling": LINEAR}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "rope_scaling": LINEAR}),
    ("llama", {"rope_parameters": GONE, "rope_theta": 300.0, "rope_scaling": {**LINEAR, "rope_theta": 90.0}}),
    ("llama", {"rope_parameters": {"type": "linear", "factor": 2.0}, "rope_theta": 300.0}),
    ("llama", {"rope_parameters": {"rope_theta": 300.0, "factor": None}, "rope_scaling": {}}),
    ("llama", {"rope_parameters": GONE, "rope_scaling": YARN, "original_max_position_embeddings": 16}),
    ("llama", {"num_key_value_heads": 2, "head_dim": None}),
    ("qwen2", {"rope_parameters": GONE, "rope_scaling": YARN, "rope_theta": 300.0}),
    ("qwen2", {"rope_parameters": GONE, "rope_scaling": {"type": "yarn", "factor": 2.0}}),
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5,
               "use_sliding_window": True}),
    ("qwen2", {"layer_types": None, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 3}),
    ("qwen2", {"layer_types": GONE, "sliding_window": 5, "use_sliding_window": GONE}),
    ("mistral", {"sliding_window": 5, "rope_parameters": GONE, "rope_theta": 300.0}),
    ("mistral", {"sliding_window": GONE}),
    ("mixtral", {"num_local_experts": GONE, "num_experts": 4, "rope_parameters": GONE}),
    ("qwen3_moe", {"num_experts": GONE, "num_local_experts": 4, "mlp_only_layers": None}),
    ("qwen3_moe", {"num_local_experts": GONE, "num_experts": 4, "use_sliding_window": True, "sliding_window": 5}),
]  # fmt: skip


def _logits(folders: list[str]) -> list[Any]:
    found = []
    for folder in folders:
        topology, chunks = models.start({}, folder)
        found.append(models.logits(chunks, topology, [models.sequences(LENGTHS)]))
        models.restart()
    return found


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    folders, expected = [], []
    for index, (name, changes) in enumerate(SPELLINGS):
        folder = tmp_path / str(index)
        models.make_model(folder, name)
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not GONE}))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected.append(models.reference_logits(theirs, models.sequences(LENGTHS)))
        folders.append(str(folder))
    (found,) = run_ranks(_logits, 1, folders, timeout_s=240)
    for spelling, ours, theirs in zip(SPELLINGS, found, expected, strict=True):
        assert (ours - theirs).abs().max().item() <= 1e-5, spelling
