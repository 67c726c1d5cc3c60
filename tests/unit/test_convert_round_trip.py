"""HF -> Megatron -> HF: the same bytes for every family at random sizes; nothing dropped, nothing changed, both judged
by code of their own."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prime_megatron.convert.to_hf import MegatronToHf
from prime_megatron.convert.to_megatron import HfToMegatron
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig, megatron_layout
from tests.support.folders import config_of, fuse_experts, read_tensors, write_folder, write_tensors

FAMILIES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe",
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
QWEN2 = config_of("Qwen2ForCausalLM", "qwen2")


def ignore(num_bytes: int) -> None:
    """Progress that no one watches."""


def to_megatron(source: Path, target: Path, dtype: torch.dtype | None = None) -> HfToMegatron:
    made = HfToMegatron(source, target, dtype)
    made.run(ignore)
    return made


def to_hf(source: Path, target: Path, dtype: torch.dtype | None = None) -> MegatronToHf:
    made = MegatronToHf(source, target, dtype, None)
    made.run(ignore)
    return made


@st.composite
def models(draw: Any) -> tuple[dict[str, Any], int, int]:
    """(config.json, shards, seed of the dtypes)."""
    architecture = draw(st.sampled_from(sorted(FAMILIES)))
    groups, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * draw(st.integers(1, 3))
    sizes = {
        "hidden_size": heads * draw(st.sampled_from([2, 4, 6])),
        "num_attention_heads": heads, "num_key_value_heads": groups, "num_hidden_layers": layers,
        "head_dim": draw(st.sampled_from([2, 4, 10])), "intermediate_size": draw(st.integers(1, 9)),
        "vocab_size": draw(st.integers(2, 17)), "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    if architecture.startswith(("Llama", "Qwen3")):
        sizes["attention_bias"] = draw(st.booleans())
    if architecture.startswith("Llama"):
        sizes["mlp_bias"] = draw(st.booleans())
    if architecture in ("MixtralForCausalLM", "Qwen3MoeForCausalLM"):
        sizes |= {"num_experts": draw(st.integers(2, 4)), "num_experts_per_tok": 2, "moe_intermediate_size": 3}
    return config_of(architecture, FAMILIES[architecture], **sizes), draw(st.integers(1, 3)), draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(models())
def test_round_trips_are_exact(model: tuple[dict[str, Any], int, int]) -> None:
    config, shards, seed = model
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        write_folder(at / "names", config)
        names = sorted(read_tensors(at / "names"))
        picks = torch.randint(0, 8, (len(names),), generator=generator).tolist()
        dtypes = {n: DTYPES[pick] if pick < 4 else torch.bfloat16 for n, pick in zip(names, picks, strict=True)}
        tensors = write_folder(at / "model", config, dtypes, shards=shards)
        own_head = config["tie_word_embeddings"] and seed % 2 == 1
        if own_head:  # the flag is wrong, and is written right
            shape, dtype = tensors["model.embed_tokens.weight"].shape, DTYPES[seed % 4]
            tensors["lm_head.weight"] = torch.randn(shape, generator=generator).to(dtype)
            write_tensors(at / "model", tensors, shards=shards)
        there = to_megatron(at / "model", at / "megatron")
        assert there.verify(ignore) == "every value is the same"
        back = to_hf(at / "megatron", at / "again")
        assert back.verify(ignore) == "every value is the same"
        again = read_tensors(at / "again")
        assert again.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert again[key].dtype == tensor.dtype and torch.equal(again[key], tensor), key
        said = json.loads((at / "again" / "config.json").read_text())
        assert said == config | ({"tie_word_embeddings": False} if own_head else {})
        assert there.changes == (("config.json: tie_word_embeddings true -> false",) if own_head else ())
        assert back.changes == ()


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_experts_in_one_tensor_a_layer(tmp_path: Path, architecture: str) -> None:
    """They come back as one tensor an expert, with the same values; one tensor of another shape is refused by name."""
    config = config_of(architecture, FAMILIES[architecture], num_experts=3, num_experts_per_tok=2)
    config["moe_intermediate_size"] = config["intermediate_size"]
    tensors = write_folder(tmp_path / "apart", config)
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "config.json").write_text(json.dumps(config))
    fused = fuse_experts(tensors, config)
    write_tensors(tmp_path / "fused", fused, shards=2)
    assert to_megatron(tmp_path / "fused", tmp_path / "megatron").verify(ignore) == "every value is the same"
    to_hf(tmp_path / "megatron", tmp_path / "again").verify(ignore)
    again = read_tensors(tmp_path / "again")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], value) for key, value in tensors.items())
    name = "model.layers.1.mlp.experts.gate_up_proj"
    write_tensors(tmp_path / "fused", fused | {name: fused[name].transpose(1, 2).contiguous()}, shards=2)
    with pytest.raises(InputError, match=rf"tensor {name} is \[3, 12, 20\], config.json says \[3, 20, 12\]"):
        HfToMegatron(tmp_path / "fused", tmp_path / "no", None)


def _refused(tmp_path: Path, match: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=match) as caught:
        to_megatron(tmp_path / "model", tmp_path / "out")
    assert "\n" not in str(caught.value) and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tensor_a_row_or_a_key_more_or_less_is_refused(tmp_path: Path, shards: int) -> None:
    tensors = write_folder(tmp_path / "model", QWEN2, shards=shards)
    for name in ("model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.k_proj.bias"):
        write_tensors(tmp_path / "model", {k: v for k, v in tensors.items() if k != name}, shards=shards)
        _refused(tmp_path, f"tensor {name} is missing")
        write_tensors(tmp_path / "model", tensors | {name: tensors[name][:-1].clone()}, shards=shards)
        _refused(tmp_path, f"tensor {name} is .*config.json says")
    for name in ("model.layers.0.mlp.gate_score.weight", "score.weight", "mtp.weight", "model.layers.2.mlp.x",
                 "model.layers.7.self_attn.rotary_emb.inv_freq"):  # fmt: skip
        write_tensors(tmp_path / "model", tensors | {name: torch.ones(1, 12)}, shards=shards)
        _refused(tmp_path, f"tensor {name} is not part of a Qwen2ForCausalLM")
    write_tensors(tmp_path / "model", tensors | {"model.norm.weight": torch.ones(12).to(torch.int8)}, shards=shards)
    _refused(tmp_path, "tensor model.norm.weight is I8")
    write_tensors(tmp_path / "model", tensors, shards=shards)
    for key in ("hidden_size", "num_hidden_layers", "architectures", "model_type"):
        config = {k: v for k, v in QWEN2.items() if k != key}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        _refused(tmp_path, key)


def test_what_a_folder_may_have_twice(tmp_path: Path) -> None:
    """A tied head that equals the embedding and frequencies that equal config.json's; others are refused by name."""
    config = QWEN2 | {"tie_word_embeddings": True}
    tensors = write_folder(tmp_path / "model", config)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 6, 2) / 6)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    copies = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(), name: frequencies}
    write_tensors(tmp_path / "model", tensors | copies)
    assert to_megatron(tmp_path / "model", tmp_path / "done").verify(ignore) == "every value is the same"
    write_tensors(tmp_path / "model", tensors | {name: frequencies * 1.5})
    _refused(tmp_path, f"{name} differs from what config.json's rotary keys say")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_head_that_differs_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    """Both ways, with the flag that says so, and with either folder as the template; in another dtype, too."""
    config = QWEN2 | {"tie_word_embeddings": True}
    tensors = write_folder(tmp_path / "model", config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(dtype, copy=True)
    if dtype is torch.float32:
        tensors["lm_head.weight"][3, 4] += 1e-6
    write_tensors(tmp_path / "model", tensors)
    there = to_megatron(tmp_path / "model", tmp_path / "megatron")
    assert there.verify(ignore) == "every value is the same"
    assert there.changes == ("config.json: tie_word_embeddings true -> false",)
    for name, template in (("own", None), ("given", tmp_path / "model")):
        back = MegatronToHf(tmp_path / "megatron", tmp_path / name, None, template)
        back.run(ignore)
        assert back.verify(ignore) == "every value is the same"
        assert back.changes == (() if template is None else there.changes)
        again = read_tensors(tmp_path / name)
        assert again.keys() == tensors.keys()
        assert all(again[key].dtype == value.dtype and torch.equal(again[key], value) for key, value in tensors.items())
        said = json.loads((tmp_path / name / "config.json").read_text())
        assert said == config | {"tie_word_embeddings": False}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))  # without weights it is what it says
    with pytest.raises(InputError, match=r"bare/config\.json: tied is True, .* of the checkpoint says False"):
        MegatronToHf(tmp_path / "megatron", tmp_path / "no", None, tmp_path / "bare")
    write_tensors(tmp_path / "model", tensors | {"lm_head.weight": tensors["lm_head.weight"][:-1].clone()})
    _refused(tmp_path, r"tensor lm_head.weight is \[12, 12\], config.json says \[13, 12\]")


def test_verify_misses_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that took a tied head for a copy of the embedding is found out."""
    config = QWEN2 | {"tie_word_embeddings": True}
    tensors = write_folder(tmp_path / "model", config)
    write_tensors(tmp_path / "model", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2})
    monkeypatch.setattr("prime_megatron.families.head.head_differs", lambda config, folder: False)
    monkeypatch.setattr("prime_megatron.families.folder.HfFolder.head_differs", lambda folder: False)
    with pytest.raises(InputError, match=r"lm_head\.weight: 156 values are on one side only"):
        to_megatron(tmp_path / "model", tmp_path / "megatron").verify(ignore)


def test_a_tied_model_under_the_output_layers_name(tmp_path: Path) -> None:
    config = QWEN2 | {"tie_word_embeddings": True}
    tensors = write_folder(tmp_path / "model", config)
    named = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    write_tensors(tmp_path / "model", {k: v for k, v in tensors.items() if "embed" not in k} | named)
    assert to_megatron(tmp_path / "model", tmp_path / "megatron").verify(ignore) == "every value is the same"
    assert to_hf(tmp_path / "megatron", tmp_path / "again").verify(ignore) == "every value is the same"
    again = read_tensors(tmp_path / "again")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], value) for key, value in tensors.items())


def test_two_models_in_a_folder(tmp_path: Path) -> None:
    tensors = write_folder(tmp_path / "model", QWEN2, shards=2)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    _refused(tmp_path, "two models, model.safetensors and the shards of model.safetensors.index.json")
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    _refused(tmp_path, "two models, model.safetensors and model-00001-of-00002.safetensors without an")


def test_a_tensor_comes_from_the_file_that_the_index_names(tmp_path: Path) -> None:
    tensors = write_folder(tmp_path / "model", QWEN2, shards=3)
    where = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.mlp.down_proj.weight"
    for file in sorted(set(where.values()) - {where[name]}):
        part = {key: tensors[key] for key, value in where.items() if value == file}
        save_file(part | {name: torch.full_like(tensors[name], 3.0)}, tmp_path / "model" / file)
    to_megatron(tmp_path / "model", tmp_path / "megatron").verify(ignore)
    to_hf(tmp_path / "megatron", tmp_path / "again")
    assert torch.equal(read_tensors(tmp_path / "again")[name], tensors[name])


def test_a_value_that_becomes_infinite_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = write_folder(tmp_path / "model", QWEN2)
    to_megatron(tmp_path / "model", tmp_path / "fine", torch.float16)
    tensors[name][2, 3] = 1e5
    write_tensors(tmp_path / "model", tensors)
    with pytest.raises(InputError, match=f"{name}: 1e.05 is beyond float16") as caught:
        to_megatron(tmp_path / "model", tmp_path / "out", torch.float16)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    to_megatron(tmp_path / "model", tmp_path / "megatron")
    with pytest.raises(InputError, match=f"{name}: 1e.05 is beyond float16"):
        to_hf(tmp_path / "megatron", tmp_path / "out", torch.float16)
    tensors[name][2, 3] = float("inf")
    write_tensors(tmp_path / "model", tensors)
    kept = to_megatron(tmp_path / "model", tmp_path / "kept", torch.float16)
    assert "largest change" in kept.verify(ignore)


BFLOAT16 = [{"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}, {}]


@pytest.mark.parametrize("keys", BFLOAT16)
def test_config_says_what_was_written(tmp_path: Path, keys: dict[str, str]) -> None:
    """Both dtype keys after a cast; untouched where most values have the dtype that it names."""
    config = QWEN2 | keys
    write_folder(tmp_path / "names", config)
    wide = {name: torch.float32 if "norm" in name else torch.bfloat16 for name in read_tensors(tmp_path / "names")}
    write_folder(tmp_path / "model", config, wide)
    to_megatron(tmp_path / "model", tmp_path / "megatron")
    same = to_hf(tmp_path / "megatron", tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == config and same.changes == ()
    cast = to_hf(tmp_path / "megatron", tmp_path / "cast", torch.float32)
    made = json.loads((tmp_path / "cast" / "config.json").read_text())
    named = keys or {"torch_dtype": None}
    assert made == config | dict.fromkeys(named, "float32")
    assert cast.changes == tuple(f'config.json: {key} {json.dumps(keys.get(key))} -> "float32"' for key in named)
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "cast").values()} == {torch.float32}


def test_verify_names_the_tensor_whose_value_changed(tmp_path: Path) -> None:
    """In the output of either direction: one bit of any tensor."""
    tensors = write_folder(tmp_path / "model", QWEN2)
    there = to_megatron(tmp_path / "model", tmp_path / "megatron")
    back = to_hf(tmp_path / "megatron", tmp_path / "again")
    for name, tensor in tensors.items():
        flipped = tensor.clone()
        flipped.view(torch.int32).view(-1)[-1] ^= 1
        write_tensors(tmp_path / "again", tensors | {name: flipped})
        with pytest.raises(InputError, match=f"again: {name} differs from the original"):
            back.verify(ignore)
        write_tensors(tmp_path / "model", tensors | {name: flipped})
        with pytest.raises(InputError, match=f"megatron: {name} differs from the original"):
            there.verify(ignore)
    write_tensors(tmp_path / "again", {k: v for k, v in tensors.items() if k != "model.norm.weight"})
    with pytest.raises(InputError, match=r"model.norm.weight is missing"):
        back.verify(ignore)
    write_tensors(tmp_path / "again", tensors | {"more": torch.ones(2)})
    with pytest.raises(InputError, match="more: 2 values are on one side only"):
        back.verify(ignore)


def test_a_damaged_list_of_dtypes(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", QWEN2)
    to_megatron(tmp_path / "model", tmp_path / "megatron")
    path = tmp_path / "megatron" / "hf_dtypes.json"
    named = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in named.items() if key != "model.norm.weight"}))
    with pytest.raises(InputError, match=r"hf_dtypes.json: model.norm.weight is in this file or in the model, not in"):
        MegatronToHf(tmp_path / "megatron", tmp_path / "out", None, None)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"hf_dtypes.json: damaged"):
        MegatronToHf(tmp_path / "megatron", tmp_path / "out", None, None)


def test_verify_shares_no_map_with_the_converters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of attention exchanged in both directions: the round trip is exact, and the judge sees it."""
    interleaved = megatron_layout._interleaved

    def exchanged(config: FamilyConfig) -> list[Any]:
        other = {0: 0, 1: 2, 2: 1}
        return [dataclasses.replace(piece, source=other[piece.source]) for piece in interleaved(config)]

    monkeypatch.setattr(megatron_layout, "_interleaved", exchanged)
    tensors = write_folder(tmp_path / "model", QWEN2)
    there = to_megatron(tmp_path / "model", tmp_path / "megatron")
    back = to_hf(tmp_path / "megatron", tmp_path / "again")
    assert all(torch.equal(value, tensors[name]) for name, value in read_tensors(tmp_path / "again").items())
    for conversion in (there, back):
        with pytest.raises(InputError, match=r"self_attn.k_proj.* differs from the original"):
            conversion.verify(ignore)
