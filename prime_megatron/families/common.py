"""Rules and config keys that the Llama-like families share."""

from __future__ import annotations

from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig, HfTensor, Rule, Split
from prime_megatron.families.keys import Keys, check_unread
from prime_megatron.families.rotary_keys import read_rope

_LAYER = "model.layers.{layer}."
_DECODER = "decoder.layers.{layer}."

COMMON_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def common_config(
    keys: Keys,
    *,
    family: str,
    architecture: str,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    window: int | None = None,
    full_layers: tuple[int, ...] = (),
    experts: int = 0,
    experts_per_token: int = 0,
    expert_ffn: int = 0,
    normalize_expert_weights: bool = True,
) -> FamilyConfig:
    """The keys that every Llama-like config.json has; raises InputError (without the file's name)."""
    keys.only("hidden_act", "silu")
    _check_experts(experts, experts_per_token, normalize_expert_weights)
    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    kv_heads = keys.whole_or_none("num_key_value_heads") or heads
    head_dim = _head_dim(keys, hidden, heads)
    if heads % kv_heads:
        raise InputError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    max_positions = keys.whole("max_position_embeddings")
    theta, scaling = read_rope(keys.raw, keys.defaults["rope_theta"], max_positions)
    vocab = keys.whole("vocab_size")
    check_unread(keys, vocab)
    return FamilyConfig(
        family=family,
        architecture=architecture,
        hidden=hidden,
        ffn=keys.whole("intermediate_size"),
        layers=keys.whole("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        max_positions=max_positions,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=keys.real("rms_norm_eps"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        window=window,
        full_layers=full_layers,
        experts=experts,
        experts_per_token=experts_per_token,
        expert_ffn=expert_ffn,
        normalize_expert_weights=normalize_expert_weights,
    )


def _head_dim(keys: Keys, hidden: int, heads: int) -> int:
    given = keys.whole_or_none("head_dim")
    if given is None and hidden % heads:
        raise InputError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim says more"
        )
    head_dim = hidden // heads if given is None else given
    if head_dim % 2:
        raise InputError(f"head_dim {head_dim} is odd; rotary embeddings turn pairs")
    return head_dim


def _check_experts(experts: int, per_token: int, normalize: bool) -> None:
    if per_token > experts:
        raise InputError(f"num_experts_per_tok {per_token} is more than the {experts} experts")
    if per_token == 1 and normalize:
        raise InputError("num_experts_per_tok = 1 with normalised expert weights is not supported by megatron-core")


def number_of_experts(keys: Keys) -> int:
    """num_experts and num_local_experts are one key; raises InputError where they disagree or are both missing."""
    names = [name for name in ("num_experts", "num_local_experts") if name in keys.raw]
    found = {name: keys.whole(name) for name in names}
    if len(set(found.values())) > 1:
        raise InputError(
            f"num_experts {found['num_experts']} and num_local_experts {found['num_local_experts']} disagree"
        )
    return found[names[0]] if names else keys.whole("num_experts")


def no_bias(keys: Keys, *names: str) -> None:
    """Refuse biases that transformers' class of this family does not have, but an engine's may."""
    for name in names:
        keys.unset(name, "this architecture has no such biases")


def layers_alike(keys: Keys) -> None:
    """Refuse layer_types of a family whose layers are all of one kind, unless they say that."""
    if keys.raw.get("layer_types") is not None:
        kinds = _layer_types(keys)
        if set(kinds) != {"full_attention"}:
            raise InputError(f"layer_types: {kinds[0]} is not supported, only full_attention in every layer")


def windows(keys: Keys) -> tuple[int | None, tuple[int, ...]]:
    """(window, layers without it) of Qwen2 and Qwen3: layer_types, or all from max_window_layers on."""
    layers, window = keys.whole("num_hidden_layers"), keys.whole_or_none("sliding_window")
    if not keys.flag("use_sliding_window"):
        window = None
    if keys.value("layer_types") is None:
        first = keys.whole("max_window_layers", least=0)
        kinds = ["full_attention" if window is None or i < first else "sliding_attention" for i in range(layers)]
    else:
        kinds = _layer_types(keys)
    full = tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")
    if len(full) == layers:
        return None, ()
    if window is None:
        raise InputError("layer_types has sliding_attention, but use_sliding_window or sliding_window says no window")
    return window, full


def _layer_types(keys: Keys) -> list[str]:
    layers, kinds = keys.whole("num_hidden_layers"), keys.raw["layer_types"]
    if not isinstance(kinds, list):
        raise InputError(f"layer_types = {kinds!r} is not a list")
    if len(kinds) != layers:
        which = f"model.layers.{min(len(kinds), layers)} is {'too many' if len(kinds) > layers else 'left out'}"
        raise InputError(f"layer_types has {len(kinds)} entries, num_hidden_layers is {layers}: {which}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise InputError(f"layer_types: {kind!r} is not supported, only full_attention and sliding_attention")
    return kinds


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
    if config.output_bias:
        bias = (HfTensor(_LAYER + "self_attn.o_proj.bias", ("hidden",)),)
        rules.append(Rule(_DECODER + "self_attention.linear_proj.bias", Split.REPLICATED, bias))
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
    rules = [
        *outer_rules(config),
        *attention_rules(config),
        mlp_norm_rule(),
        Rule(_DECODER + "mlp.linear_fc1.weight", Split.GATE_UP, gate_up),
        Rule(_DECODER + "mlp.linear_fc2.weight", Split.ROW, down),
    ]
    if config.mlp_bias:
        biases = tuple(HfTensor(f"{_LAYER}mlp.{name}_proj.bias", ("ffn",)) for name in ("gate", "up"))
        rules.append(Rule(_DECODER + "mlp.linear_fc1.bias", Split.GATE_UP, biases))
        down_bias = (HfTensor(_LAYER + "mlp.down_proj.bias", ("hidden",)),)
        rules.append(Rule(_DECODER + "mlp.linear_fc2.bias", Split.REPLICATED, down_bias))
    return tuple(rules)


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
