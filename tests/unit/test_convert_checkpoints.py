"""Megatron checkpoints of other makes: every key is used or named, padding is one number of zeros, a tensor a layer."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from prime_megatron.convert.to_hf import MegatronToHf
from prime_megatron.convert.to_megatron import HfToMegatron
from prime_megatron.errors import InputError
from prime_megatron.mcore.index import read_index
from tests.support.folders import config_of, read_tensors, write_folder
from tests.support.payload import Payload

QWEN2 = config_of("Qwen2ForCausalLM", "qwen2")
"""Two groups of two query heads of size 6 over hidden 12: linear_qkv has 2 x (12 + 6 + 6) rows."""
MOE = config_of("Qwen3MoeForCausalLM", "qwen3_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=4)
QKV, BIAS = "decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_qkv.bias"
PROJ, EMBEDDING = "decoder.layers.self_attention.linear_proj.weight", "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
State = dict[str, Tensor]


def ignore(num_bytes: int) -> None:
    """Progress that no one watches."""


def made(tmp_path: Path, config: dict) -> State:
    """A checkpoint's tensors by key; the folder is tmp_path / "model"."""
    write_folder(tmp_path / "model", config)
    HfToMegatron(tmp_path / "model", tmp_path / "own", None).run(ignore)
    kinds = dcp.FileSystemReader(tmp_path / "own").read_metadata().state_dict_metadata
    state = {
        key: torch.empty(kind.size, dtype=kind.properties.dtype)
        for key, kind in kinds.items()
        if isinstance(kind, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=tmp_path / "own", no_dist=True)
    return state


def back(tmp_path: Path, state: State, *, drop_padding: bool = False) -> None:
    """Save the state, convert and verify: what comes out is the model, tensor by tensor."""
    dcp.save(state, checkpoint_id=tmp_path / "other", no_dist=True)
    conversion = MegatronToHf(tmp_path / "other", tmp_path / "out", None, tmp_path / "model", drop_padding=drop_padding)
    conversion.run(ignore)
    conversion.verify(ignore)
    expected, found = read_tensors(tmp_path / "model"), read_tensors(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def padded(state: State, groups: int, rows: int) -> State:
    """More attention groups and vocabulary rows, all zero."""

    def grow(tensor: Tensor, dim: int, count: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = count
        return torch.cat([tensor, tensor.new_zeros(shape)], dim)

    more = {
        QKV: (1, 24 * groups),
        BIAS: (1, 24 * groups),
        PROJ: (2, 12 * groups),
        EMBEDDING: (0, rows),
        HEAD: (0, rows),
    }
    return state | {key: grow(state[key], dim, count) for key, (dim, count) in more.items()}


def test_a_run_s_other_tensors_stay_behind(tmp_path: Path) -> None:
    state = made(tmp_path, QWEN2)
    back(tmp_path, state | {f"optimizer.state.exp_avg.{QKV}": torch.ones(3), "rng_state": torch.ones(2)})


@pytest.mark.parametrize("key", ["decoder.layers.self_attention.linear_proj.bias", "decoder.layers.mlp.router.weight",
                                 "decoder.layers.self_attention.q_layernorm.weight", "value_head.weight",
                                 "x"])  # fmt: skip
def test_a_key_that_the_model_has_not_is_named(tmp_path: Path, key: str) -> None:
    state = made(tmp_path, QWEN2)
    with pytest.raises(InputError, match=f"{HEAD if key == 'value_head.weight' else key} would be left out"):
        back(tmp_path, state | {key: torch.ones(2, 12)})
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_lacking_is_named(tmp_path: Path) -> None:
    state = made(tmp_path, QWEN2)
    with pytest.raises(InputError, match=f"{BIAS} is missing"):
        back(tmp_path, {key: tensor for key, tensor in state.items() if key != BIAS})


def test_zeros_beyond_the_model_are_padding(tmp_path: Path) -> None:
    back(tmp_path, padded(made(tmp_path, QWEN2), groups=2, rows=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p: {**s, QKV: p[QKV]}, f"{PROJ} is .2, 12, 24., .* says .2, 12, 36."),
        (lambda s, p: {**p, PROJ: s[PROJ]}, f"{PROJ} is .2, 12, 24., .* says .2, 12, 36."),
        (lambda s, p: {**p, BIAS: s[BIAS]}, f"{BIAS} is .2, 48., .* says .2, 72."),
        (lambda s, p: {**p, HEAD: s[HEAD]}, f"{HEAD} is .13, 12., .* says .16, 12."),
        (lambda s, p: {**s, EMBEDDING: p[EMBEDDING]}, f"{HEAD} is .13, 12., .* says .16, 12."),
        (lambda s, p: {**s, QKV: s[QKV][:, :-6].clone()}, f"{QKV} is .2, 42, 12., .* says .2, 48, 12."),
    ],
)
def test_padding_is_one_number(tmp_path: Path, change: Callable[[State, State], State], message: str) -> None:
    state = made(tmp_path, QWEN2)
    with pytest.raises(InputError, match=message):
        back(tmp_path, change(state, padded(state, groups=1, rows=3)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "place", "rows"), [(QKV, (1, -1, 2), 1), (BIAS, (0, 50), 1), (PROJ, (1, 3, -1), 1), (EMBEDDING, (14, 0), 1)]
)
def test_values_beyond_the_model_are_named(tmp_path: Path, key: str, place: tuple[int, ...], rows: int) -> None:
    state = padded(made(tmp_path, QWEN2), groups=1, rows=3)
    state[key][place] = 0.5
    with pytest.raises(InputError, match=rf"{key} .* has {rows} rows that are not zero beyond the model's"):
        back(tmp_path, state)
    assert not (tmp_path / "out").exists()


def test_noise_beyond_the_vocabulary_is_left_out_on_request(tmp_path: Path) -> None:
    """Megatron-LM pads with it; a value beyond attention's groups is never left out."""
    state = padded(made(tmp_path, QWEN2), groups=1, rows=3)
    state[EMBEDDING][13:] = torch.randn(3, 12)
    with pytest.raises(InputError, match=r"3 rows .*--drop-padding leaves them out"):
        back(tmp_path, state)
    back(tmp_path, state, drop_padding=True)
    state[QKV][0, 48] = 1.0
    dcp.save(state, checkpoint_id=tmp_path / "third", no_dist=True)
    with pytest.raises(InputError, match=QKV):
        MegatronToHf(tmp_path / "third", tmp_path / "no", None, tmp_path / "model", drop_padding=True)


def by_layer(state: State, *, experts: bool = False, halves: bool = False) -> State:
    """As megatron-core writes it with non_homogeneous_layers; by expert and by half with singleton_local_shards."""
    made: State = {}
    for key, tensor in state.items():
        if not key.startswith("decoder.layers."):
            made[key] = tensor
            continue
        for layer, own in enumerate(tensor):
            name = key.replace("decoder.layers.", f"decoder.layers.{layer}.")
            if experts and ".experts." in key:
                parts = {name.replace("experts.experts.", f"experts.experts.{i}."): x for i, x in enumerate(own)}
            else:
                parts = {name: own}
            for part, values in parts.items():
                if halves and "linear_fc1.weight" in part:
                    first, second = values.chunk(2, 0)
                    made |= {f"{part}_w": first.clone(), f"{part}_v": second.clone()}
                else:
                    made[part] = values.clone()
    return made


@pytest.mark.parametrize("config", [QWEN2, MOE], ids=["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("singleton", [False, True])
def test_a_tensor_a_layer(tmp_path: Path, config: dict, singleton: bool) -> None:
    back(tmp_path, by_layer(made(tmp_path, config), experts=singleton, halves=singleton))


def test_a_layer_that_is_lacking_or_unlike_its_siblings(tmp_path: Path) -> None:
    state = by_layer(made(tmp_path, QWEN2))
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    with pytest.raises(
        InputError, match=r"decoder.layers.mlp.linear_fc2.weight is \[1, 12, 10\], .* says \[2, 12, 10\]"
    ):
        back(tmp_path, {key: tensor for key, tensor in state.items() if key != name})
    dcp.save(state | {name: torch.ones(12, 9)}, checkpoint_id=tmp_path / "unlike", no_dist=True)
    with pytest.raises(InputError, match="another layer's is"):
        MegatronToHf(tmp_path / "unlike", tmp_path / "no", None, tmp_path / "model")


def test_a_template_with_other_heads_is_refused(tmp_path: Path) -> None:
    """Twice the heads of half the size: every tensor has the same shape, and every value another meaning."""
    write_folder(tmp_path / "model", QWEN2)
    HfToMegatron(tmp_path / "model", tmp_path / "own", None).run(ignore)
    other = QWEN2 | {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 2}
    write_folder(tmp_path / "other", other)
    assert {k: v.shape for k, v in read_tensors(tmp_path / "other").items()} == {
        k: v.shape for k, v in read_tensors(tmp_path / "model").items()
    }
    with pytest.raises(InputError, match=r"other/config.json: heads is 12, .*own/hf/config.json .* says 4"):
        MegatronToHf(tmp_path / "own", tmp_path / "out", None, tmp_path / "other")
    MegatronToHf(tmp_path / "own", tmp_path / "out", None, tmp_path / "model").run(ignore)


def _payload_index(folder: Path, ran: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(ran)))


def _payload_beside_an_index(folder: Path, ran: Path) -> None:
    metadata = read_index(folder)
    metadata.planner_data = {"mine": Payload(ran)}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _payload_shard(folder: Path, ran: Path) -> None:
    for path in folder.glob("*.distcp"):
        path.write_bytes(pickle.dumps(Payload(ran)) * 3000)


def _payload_dtypes(folder: Path, ran: Path) -> None:
    (folder / "hf_dtypes.json").write_bytes(pickle.dumps(Payload(ran)))


def _payload_config(folder: Path, ran: Path) -> None:
    (folder / "hf" / "config.json").write_bytes(pickle.dumps(Payload(ran)))


def _deep_config(folder: Path, ran: Path) -> None:
    (folder / "hf" / "config.json").write_text("[" * 5000 + "]" * 5000)


def _put_outside(folder: Path, ran: Path) -> None:
    metadata = read_index(folder)
    for stored in metadata.storage_data.values():
        stored.relative_path = "../" + stored.relative_path
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("way", ["convert", "verify"])
@pytest.mark.parametrize(
    "plant",
    [_payload_index, _payload_beside_an_index, _payload_shard, _payload_dtypes, _payload_config, _deep_config,
     _put_outside],
)  # fmt: skip
def test_a_foreign_checkpoint_runs_nothing(plant: Callable[[Path, Path], None], way: str, tmp_path: Path) -> None:
    """Planted before the conversion, and between it and the comparison, which reads by other code."""
    write_folder(tmp_path / "model", QWEN2)
    HfToMegatron(tmp_path / "model", tmp_path / "own", None).run(ignore)
    if way == "verify":
        conversion = MegatronToHf(tmp_path / "own", tmp_path / "out", None, None)
        conversion.run(ignore)
        if plant in (_payload_dtypes, _payload_config, _deep_config):
            return  # the comparison does not read these
    plant(tmp_path / "own", tmp_path / "ran")
    with pytest.raises(InputError) as refused:
        if way == "verify":
            conversion.verify(ignore)
        else:
            MegatronToHf(tmp_path / "own", tmp_path / "out", None, None).run(ignore)
    assert "\n" not in str(refused.value) and str(tmp_path / "own") in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_common_pt_is_never_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", QWEN2)
    HfToMegatron(tmp_path / "model", tmp_path / "own", None).run(ignore)
    torch.save(Payload(tmp_path / "ran"), tmp_path / "own" / "common.pt")
    (tmp_path / "own" / "metadata.json").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    conversion = MegatronToHf(tmp_path / "own", tmp_path / "out", None, None)
    conversion.run(ignore)
    conversion.verify(ignore)
    assert not (tmp_path / "ran").exists()
