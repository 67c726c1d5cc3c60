"""Generated config.json values: one clear line, or the model that transformers reads; never a traceback or silence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.errors import InputError
from prime_megatron.families import FAMILIES
from prime_megatron.families.check import check_against_transformers, compare_facts, windows_within
from prime_megatron.families.common import COMMON_DEFAULTS
from prime_megatron.families.keys import Keys
from prime_megatron.families.read import read_config

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 101, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
WRONG = st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 7, 0.5, 1.0, "", "8", "linear", [], [1], {}, {"a": 1}])
NUMBERS = st.sampled_from([1.0, 2.0, 4, 0.7, 32.0, None])
KINDS = st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic", "longrope", "mrope", None, 3])


@st.composite
def ropes(draw: Any) -> Any:
    """A rope dict: whole, lacking keys, with keys too many, nested, or no dict at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(WRONG)
    rope: dict[str, Any] = {}
    for key in ("rope_type", "type"):
        if draw(st.booleans()):
            rope[key] = draw(KINDS)
    if draw(st.booleans()):
        rope["rope_theta"] = draw(st.sampled_from([5e5, 10000, None, "1e4", 1.0, 0]))
    full = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    rope |= {key: value for key, value in full.items() if draw(st.booleans())}
    for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor", "x"):
        if draw(st.integers(0, 5)) == 0:
            rope[key] = draw(NUMBERS)
    return {"full_attention": rope} if draw(st.integers(0, 9)) == 0 else rope


OWN: dict[str, Any] = {
    "rope_scaling": ropes(),
    "rope_parameters": ropes(),
    "rope_theta": st.sampled_from([1e6, 10000, None, "1e4", 0.0, True]),
    "original_max_position_embeddings": st.sampled_from([16, None, "16"]),
    "layer_types": st.sampled_from([
        None, "full", ["full_attention"] * 2, ["sliding_attention", "full_attention"], ["full_attention"],
        ["other"] * 2,
    ]),
    "sliding_window": st.sampled_from([None, 4, 0, "4", True]),
    "use_sliding_window": st.sampled_from([True, False, None, 1]),
    "max_window_layers": st.sampled_from([0, 1, 2, None, -1]),
    "num_experts": st.sampled_from([4, 2, None, 0]),
    "num_local_experts": st.sampled_from([4, 2, None]),
    "eos_token_id": st.sampled_from([1, [1, 2], None, "1", [None]]),
    "dtype": st.sampled_from(["bfloat16", "float32", None, "float8_e4m3fn", 16]),
    "torch_dtype": st.sampled_from(["bfloat16", None, "half?"]),
}  # fmt: skip
ANY = [
    *SIZES, "rms_norm_eps", "tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias", "partial_rotary_factor",
    "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers",
    "pad_token_id", "bos_token_id", "attention_dropout", "initializer_range", "use_cache", "router_aux_loss_coef",
    "quantization_config", "per_layer_config", "bias", "pretraining_tp", "output_router_logits",
]  # fmt: skip


@st.composite
def configs(draw: Any) -> dict[str, Any]:
    """A right config of some family, up to four of its keys changed or left out."""
    family = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    raw = {"architectures": [family.architecture], "model_type": family.name, **SIZES}
    if "num_experts" in family.defaults:
        raw |= {"num_experts": 4, "num_experts_per_tok": 2}
    for key in draw(st.lists(st.sampled_from([*OWN, *OWN, *ANY]), max_size=4)):
        if draw(st.integers(0, 5)) == 0:
            raw.pop(key, None)
        else:
            raw[key] = draw(OWN.get(key, WRONG))
    return raw


@settings(max_examples=500, deadline=None)
@given(configs())
def test_one_line_or_what_transformers_reads(raw: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(raw))
        try:
            family = read_config(name)
        except InputError as error:
            line = str(error)
        else:
            check_against_transformers(family, name, trust_remote_code=False)
            return
    assert line.startswith(f"{name}/config.json: ") and "\n" not in line


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_a_difference_is_refused_by_name(tmp_path: Path, architecture: str) -> None:
    """The comparison's own failure: a config that changed after it was read."""
    family = FAMILIES[architecture]
    raw = {"architectures": [architecture], "model_type": family.name, **SIZES}
    if "num_experts" in family.defaults:
        raw |= {"num_experts": 4, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    read = read_config(tmp_path)
    for change, word in (
        ({"rope_theta": 77.0}, r"rope_theta is 10+\.0 for the trainer, 77\.0 for transformers"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"vocab_size": 55}, "vocab_size"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps"),
        ({"hidden_size": "x"}, "transformers cannot read it"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(InputError, match=word) as caught:
            check_against_transformers(read, tmp_path, trust_remote_code=False)
        assert "\n" not in str(caught.value)


def test_windows_that_hold_every_sequence_hide_nothing() -> None:
    family = FAMILIES["MistralForCausalLM"].parse(Keys({**SIZES, "sliding_window": 16}, COMMON_DEFAULTS, ("head_dim",)))
    for theirs, longest, same in (
        ([16, 16], 99, True), ([None, None], 16, True), ([None, None], 17, False), ([16, None], 17, False),
        ([8, 8], 16, False), ([8, 8], 8, True), ([17, 16], 17, False), ([17, 16], 16, True),
    ):  # fmt: skip
        own, facts = windows_within(family, {"windows by layer": theirs}, longest)
        if same:
            compare_facts(own, facts, "x", "the engine")
            continue
        with pytest.raises(InputError, match=r"x: windows by layer is \[.*\] for the trainer, .* for the engine; they"):
            compare_facts(own, facts, "x", "the engine")
