"""Rules and config keys that the Llama-like families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig, HfTensor, RopeScaling, Rule, Split

_LAYER = "model.layers.{layer}."
_DECODER = "decoder.layers.{layer}."

COMMON_DEFAULTS: dict[str, Any] = {
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "sliding_window": None,
}


def common_config(
    raw: Mapping[str, Any],
    *,
    family: str,
    architecture: str,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    window: int | None = None,
    experts: int = 0,
    experts_per_token: int = 0,
    expert_ffn: int = 0,
    normalize_expert_weights: bool = True,
) -> FamilyConfig:
    """The keys that every Llama-like config.json has; raises InputError (without the file's name) and KeyError."""
    if raw["hidden_act"] != "silu":
        raise InputError(f"hidden_act {raw['hidden_act']!r} is not supported, only silu")
    if experts_per_token == 1 and normalize_expert_weights:
        raise InputError("num_experts_per_tok = 1 with normalised expert weights is not supported by megatron-core")
    heads = raw["num_attention_heads"]
    theta, scaling = _rope(raw)
    return FamilyConfig(
        family=family,
        architecture=architecture,
        hidden=raw["hidden_size"],
        ffn=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=heads if raw["num_key_value_heads"] is None else raw["num_key_value_heads"],
        head_dim=raw["hidden_size"] // heads if raw["head_dim"] is None else raw["head_dim"],
        vocab=raw["vocab_size"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=raw["rms_norm_eps"],
        tied=raw["tie_word_embeddings"],
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        window=window,
        experts=experts,
        experts_per_token=experts_per_token,
        expert_ffn=expert_ffn,
        normalize_expert_weights=normalize_expert_weights,
    )


def refuse(raw: Mapping[str, Any], **wanted: Any) -> None:
    """InputError for a config key whose value this project does not compute."""
    for key, value in wanted.items():
        if raw[key] != value:
            raise InputError(f"{key} = {raw[key]!r} is not supported, only {value!r}")


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    parameters = raw["rope_parameters"]
    scaling = raw["rope_scaling"] if parameters is None else parameters
    theta = parameters["rope_theta"] if parameters is not None and "rope_theta" in parameters else raw["rope_theta"]
    if scaling is None:
        return float(theta), None
    kinds = [scaling[key] for key in ("rope_type", "type") if key in scaling]
    kind = kinds[0] if kinds else "default"
    if kind == "default":
        return float(theta), None
    if kind == "linear":
        return float(theta), RopeScaling("linear", float(scaling["factor"]))
    if kind == "llama3":
        return float(theta), RopeScaling(
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    raise InputError(f"rope scaling {kind!r} is not supported, only default, linear and llama3")


def outer_rules(config: FamilyConfig) -> tuple[Rule, ...]:
    """Embedding, final norm and output layer."""
    embedding = HfTensor("model.embed_tokens.weight", ("vocab", "hidden"))
    head = embedding if config.tied else HfTensor("lm_head.weight", ("vocab", "hidden"))
    return (
        Rule("embedding.word_embeddings.weight", Split.VOCAB, (embedding,)),
        Rule("decoder.final_layernorm.weight", Split.REPLICATED, (HfTensor("model.norm.weight", ("hidden",)),)),
        Rule("output_layer.weight", Split.VOCAB, (head,)),
    )


def attention_rules(config: FamilyConfig) -> tuple[Rule, ...]:
    """The attention half of a layer, with its norm."""

    def qkv(kind: str) -> tuple[HfTensor, ...]:
        tail = ("hidden",) if kind == "weight" else ()
        return tuple(
            HfTensor(f"{_LAYER}self_attn.{name}_proj.{kind}", (rows, *tail))
            for name, rows in (("q", "q"), ("k", "kv"), ("v", "kv"))
        )

    norm = (HfTensor(_LAYER + "input_layernorm.weight", ("hidden",)),)
    proj = (HfTensor(_LAYER + "self_attn.o_proj.weight", ("hidden", "q")),)
    rules = [
        Rule(_DECODER + "input_layernorm.weight", Split.REPLICATED, norm),
        Rule(_DECODER + "self_attention.linear_qkv.weight", Split.QKV, qkv("weight")),
        Rule(_DECODER + "self_attention.linear_proj.weight", Split.ROW, proj),
    ]
    if config.qkv_bias:
        rules.append(Rule(_DECODER + "self_attention.linear_qkv.bias", Split.QKV, qkv("bias")))
    if config.qk_norm:
        for name in ("q", "k"):
            source = (HfTensor(f"{_LAYER}self_attn.{name}_norm.weight", ("head_dim",)),)
            rules.append(Rule(f"{_DECODER}self_attention.{name}_layernorm.weight", Split.REPLICATED, source))
    return tuple(rules)


def mlp_norm_rule() -> Rule:
    """The norm before the MLP."""
    source = (HfTensor(_LAYER + "post_attention_layernorm.weight", ("hidden",)),)
    return Rule(_DECODER + "pre_mlp_layernorm.weight", Split.REPLICATED, source)


def dense_rules(config: FamilyConfig) -> tuple[Rule, ...]:
    """All parameters of a dense Llama-like model."""
    gate_up = tuple(HfTensor(f"{_LAYER}mlp.{name}_proj.weight", ("ffn", "hidden")) for name in ("gate", "up"))
    down = (HfTensor(_LAYER + "mlp.down_proj.weight", ("hidden", "ffn")),)
    return (
        *outer_rules(config),
        *attention_rules(config),
        mlp_norm_rule(),
        Rule(_DECODER + "mlp.linear_fc1.weight", Split.GATE_UP, gate_up),
        Rule(_DECODER + "mlp.linear_fc2.weight", Split.ROW, down),
    )


def expert_rules(config: FamilyConfig, block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """All parameters of a mixture-of-experts model whose layers keep their router and experts under ``block``."""
    experts = f"{_LAYER}{block}.experts.{{expert}}."
    local = _DECODER + "mlp.experts.local_experts.{expert}."
    gate_up = tuple(HfTensor(f"{experts}{name}.weight", ("expert_ffn", "hidden")) for name in (gate, up))
    router = (HfTensor(f"{_LAYER}{block}.gate.weight", ("experts", "hidden")),)
    return (
        *outer_rules(config),
        *attention_rules(config),
        mlp_norm_rule(),
        Rule(_DECODER + "mlp.router.weight", Split.REPLICATED, router),
        Rule(local + "linear_fc1.weight", Split.GATE_UP, gate_up),
        Rule(local + "linear_fc2.weight", Split.ROW, (HfTensor(f"{experts}{down}.weight", ("hidden", "expert_ffn")),)),
    )
