"""config.json says that the output layer is the embedding, and the weights have another one, a copy, or that one alone:
what transformers makes of the folder is what is trained, generated from and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from prime_megatron.families.count import num_parameters
from prime_megatron.families.read import read_config
from tests.support import models, toy
from tests.support.ranks import run_ranks
from tests.support.runs import run

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SEQUENCES = models.sequences([7, 30])


def edit(folder: Path, tensors: dict[str, torch.Tensor], *, tied: bool) -> dict[str, Any]:
    """Give a folder these weights and this flag; returns its config."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def _logits_and_export(folder: str) -> Any:
    from prime_megatron.mcore.weights import export_hf

    topology, chunks = models.start({"pipeline": 2}, folder)
    export_hf(chunks, f"{folder}-out", topology, folder)
    found = models.logits(chunks, topology, [SEQUENCES])
    models.restart()
    return found


def _all(folders: list[str]) -> list[Any]:
    return [_logits_and_export(folder) for folder in folders]


def test_trained_and_exported_as_transformers_reads_it(tmp_path: Path) -> None:
    names = ("own", "copy", "head alone")
    expected, raws = {}, {}
    for name in names:
        models.make_model(tmp_path / name, "qwen2")
        tensors = load_file(tmp_path / name / "model.safetensors")
        if name == "copy":
            tensors[HEAD] = tensors[EMBEDDING].clone()
        if name == "head alone":
            del tensors[EMBEDDING]
        raws[name] = edit(tmp_path / name, tensors, tied=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        expected[name] = models.reference_logits(theirs, SEQUENCES)
        assert num_parameters(read_config(tmp_path / name)) == sum(param.numel() for param in theirs.parameters())
    ranks = run_ranks(_all, 2, [str(tmp_path / name) for name in names], timeout_s=240)
    for index, name in enumerate(names):
        assert (ranks[1][index] - expected[name]).abs().max().item() <= 1e-5, name
        source, out = load_file(tmp_path / name / "model.safetensors"), tmp_path / f"{name}-out"
        held = load_file(out / "model.safetensors")
        kept = {EMBEDDING, HEAD} if name == "own" else {EMBEDDING}
        assert held.keys() & {EMBEDDING, HEAD} == kept
        assert torch.equal(held[EMBEDDING], source[HEAD if name == "head alone" else EMBEDDING])
        assert name != "own" or torch.equal(held[HEAD], source[HEAD])
        said = json.loads((out / "config.json").read_text())
        assert said == raws[name] | {"tie_word_embeddings": name != "own"}
    assert (expected["own"] - expected["copy"]).abs().max().item() > 0.1


def test_a_run_generates_with_it_and_writes_it(tmp_path: Path) -> None:
    """The engine goes by the flag, and is told; what is trained is in the exports, which are untied models."""
    folder = tmp_path / "model"
    toy.make_model(folder, tied=False)
    tensors = load_file(folder / "model.safetensors")
    edit(folder, tensors, tied=True)
    prompts, keep = toy.make_prompts(tmp_path / "prompts.jsonl"), {"export_final": True}
    settings = toy.settings(str(folder), prompts, tmp_path / "run", checkpoint=keep)
    rows = run(settings | {"run": {**settings["run"], "steps": 1}})
    assert rows[-1]["step"] == 1 and rows[-1]["engine/logprob_gap_mean"] < 1e-5
    for role in ("policy", "prm"):
        raw = json.loads((tmp_path / "run" / role / "config.json").read_text())
        assert raw["tie_word_embeddings"] is False, role
    held = load_file(tmp_path / "run" / "prm" / "model.safetensors")  # the policy has no advantages: it is never right
    assert held[HEAD].shape == tensors[HEAD].shape and not torch.equal(held[HEAD], tensors[HEAD])
    assert not torch.equal(held[HEAD], held[EMBEDDING])
