"""Whether transformers reads a model folder as this project does: the same facts, asked of both.

The facts come from transformers' config object and from the rotary module of the class it would build, so that a family
is covered as soon as it is listed.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.rope import attention_factor, inverse_frequencies

_SLIDING = "sliding_attention"


def check_against_transformers(family: FamilyConfig, folder: Path | str, *, trust_remote_code: bool) -> None:
    """InputError, in one line, where transformers cannot read folder/config.json or reads another model in it."""
    import transformers

    path = Path(folder) / "config.json"
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True, **family.corrections
        )
        theirs = facts_of(config)
    except Exception as error:  # transformers raises whatever the value leads to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:3]) or type(error).__name__
        raise InputError(f"{path}: transformers cannot read it: {reason[:300]}") from None
    if getattr(config, "auto_map", None) and trust_remote_code:
        raise InputError(f"{path}: auto_map names code of the folder's own, which models.trust_remote_code would run")
    compare_facts(family, theirs, str(path), "transformers")


def compare_facts(family: FamilyConfig, theirs: dict[str, Any], place: str, reader: str) -> None:
    """InputError, naming the first fact that differs; facts that the reader does not tell are not compared."""
    for name, ours in _own_facts(family).items():
        if name in theirs and not _agree(ours, theirs[name]):
            raise InputError(
                f"{place}: {name} is {_short(ours)} for the trainer, {_short(theirs[name])} for {reader}; "
                "they would compute two models"
            )


def windows_within(
    family: FamilyConfig, theirs: dict[str, Any], max_tokens: int
) -> tuple[FamilyConfig, dict[str, Any]]:
    """Both readings without the windows that hold every sequence of ``max_tokens``: those hide nothing."""
    own = family
    if family.window is not None and family.window >= max_tokens:
        own = dataclasses.replace(family, window=None, full_layers=())
    found = [None if window is None or window >= max_tokens else window for window in theirs["windows by layer"]]
    return own, theirs | {"windows by layer": found}


def facts_of(config: Any) -> dict[str, Any]:
    """What a transformers config object says of the model, under the names of config.json."""
    facts: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
    for name in ("rms_norm_eps", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "hidden_act"):
        facts[name] = getattr(config, name)
    head_dim = getattr(config, "head_dim", None)
    facts["head_dim"] = facts["hidden_size"] // facts["num_attention_heads"] if head_dim is None else head_dim
    declared = {field.name for field in dataclasses.fields(config)}
    sparse = [name for name in ("num_local_experts", "num_experts") if name in declared]
    experts = facts["experts"] = getattr(config, sparse[0]) if sparse else 0
    if experts:
        facts["num_experts_per_tok"] = config.num_experts_per_tok
        facts["moe_intermediate_size"] = (
            config.moe_intermediate_size if "moe_intermediate_size" in declared else config.intermediate_size
        )
        facts["norm_topk_prob"] = config.norm_topk_prob if "norm_topk_prob" in declared else True
    else:
        facts["intermediate_size"] = config.intermediate_size
    facts["windows by layer"] = _windows(config)
    facts |= {name: getattr(config, name) for name in ("attention_bias", "mlp_bias") if name in declared}
    return facts | _rotary(config)


def _windows(config: Any) -> list[int | None]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or kinds is None:
        return [window] * layers
    return [window if kind == _SLIDING else None for kind in kinds]


def _rotary(config: Any) -> dict[str, Any]:
    """Of the class that transformers would build: its rotary module is made, no weights are."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    (made,) = [
        value
        for name, value in vars(module).items()
        if name.endswith("RotaryEmbedding") and isinstance(value, type) and value.__module__ == module.__name__
    ]
    rope = config.rope_parameters
    named = {"rope_type": rope["rope_type"], "rope_theta": float(rope["rope_theta"])}
    return named | rotary_facts(made(config))


def rotary_facts(module: Any) -> dict[str, Any]:
    """Of one of transformers' rotary modules."""
    return {
        "inverse frequencies (rotary)": module.inv_freq.detach().float().cpu(),
        "attention factor (rotary)": float(module.attention_scaling),
    }


def _own_facts(family: FamilyConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model_type": family.family,
        "hidden_size": family.hidden,
        "num_hidden_layers": family.layers,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.kv_heads,
        "head_dim": family.head_dim,
        "vocab_size": family.vocab,
        "max_position_embeddings": family.max_positions,
        "rms_norm_eps": family.norm_eps,
        "tie_word_embeddings": family.tied,
        "hidden_act": "silu",
        "experts": family.experts,
        "mlp_bias": family.mlp_bias,
        "rope_type": "default" if family.rope_scaling is None else family.rope_scaling.kind,
        "rope_theta": family.rope_theta,
        "windows by layer": [family.layer_window(layer) for layer in range(family.layers)],
        "inverse frequencies (rotary)": inverse_frequencies(family),
        "attention factor (rotary)": attention_factor(family),
    }
    if family.output_bias or not family.qkv_bias:  # Qwen2 has biases on q, k and v without a key
        facts["attention_bias"] = family.qkv_bias
    if not family.experts:
        return facts | {"intermediate_size": family.ffn}
    return facts | {
        "num_experts_per_tok": family.experts_per_token,
        "moe_intermediate_size": family.expert_ffn,
        "norm_topk_prob": family.normalize_expert_weights,
    }


def _agree(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=0.0)
    if isinstance(ours, float):
        return abs(ours - theirs) <= 1e-6 * abs(ours)
    return type(ours) is type(theirs) and ours == theirs


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{[float(f'{x:.4g}') for x in value.flatten().tolist()[:4]]}..., {tuple(value.shape)}"
    return repr(value)
