"""Layer specs: Transformer Engine's where it imports and was run with this release of megatron-core, ours where not."""

from __future__ import annotations

import copy
import functools
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention

from prime_megatron.config.model import Layers
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig
from prime_megatron.mcore.cpu.attention import PackedAttention, varlen_backend
from prime_megatron.mcore.cpu.linear import ColumnLinear, RowLinear
from prime_megatron.mcore.cpu.norm import RMSNorm
from prime_megatron.mcore.cpu.swiglu import SwiGLU
from prime_megatron.mcore.versions import TE_RUN, installed, mlp_submodules


def takes_te(layers: Layers) -> bool:
    """Whether models get Transformer Engine's layers here. Raises InputError: they are asked for and do not import."""
    return _te_or_why_not(layers) is None


def _te_or_why_not(layers: Layers) -> str | None:
    """None: Transformer Engine's. Else why ours. Raises InputError as ``takes_te``."""
    if layers is Layers.local:
        return "models.layers local"
    missing = _missing_for_te()
    if layers is Layers.te and missing is not None:
        raise InputError(f"models.layers: te is not to be had here ({missing}); set it to auto or local")
    if layers is Layers.auto and missing is None:
        pair = (_te_version(), str(installed()))
        if pair not in TE_RUN:
            return (
                f"Transformer Engine {pair[0]} has not been run with megatron-core {pair[1]}; models.layers te takes it"
            )
    return missing


def _te_version() -> str:
    try:
        return version("transformer-engine")
    except PackageNotFoundError:
        return "of unknown version"


@functools.cache
def _missing_for_te() -> str | None:
    """Why Transformer Engine's layers cannot be. Its core alone, as in the engines' environments, is not enough."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # a library of its own that does not load raises many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"transformer_engine.pytorch does not import: {reason[:120]}"
    return None


def describe_layers(layers: Layers, dtype: torch.dtype) -> str:
    """The layers and attention that build_model chooses here and why, for the start-up log. Raises as ``takes_te``."""
    why = _te_or_why_not(layers)
    if why is None:
        reason = "models.layers te" if layers is Layers.te else "run with this megatron-core"
        return f"layers: Transformer Engine {_te_version()} ({reason}); attention: Transformer Engine"
    loop = not torch.cuda.is_available() or dtype is torch.float32
    attention = "sdpa loop" if loop else varlen_backend()
    return f"layers: megatron-core local with our RMSNorm ({why}); attention: {attention}"


class OtherBiasAttention(SelfAttention):
    """Self-attention whose output projection has a bias where the feed-forward has none, or the other way round."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        own = copy.copy(config)
        own.add_bias_linear = not config.add_bias_linear
        super().__init__(own, *args, **kwargs)


def layer_spec(config: TransformerConfig, family: FamilyConfig, *, te: bool) -> ModuleSpec:
    """The spec of every decoder layer. Upstream has one switch for the biases of attention's output and of the MLP."""
    spec = _plain_spec(config, te=te)
    if family.output_bias != config.add_bias_linear:
        spec.submodules.self_attention.module = OtherBiasAttention
    return spec


def _plain_spec(config: TransformerConfig, *, te: bool) -> Any:
    make: Any = get_gpt_layer_with_transformer_engine_spec if te else get_gpt_layer_local_spec
    kwargs: dict[str, Any] = {
        "num_experts": config.num_moe_experts,
        "moe_grouped_gemm": config.moe_grouped_gemm,
        "qk_layernorm": config.qk_layernorm,
    }
    if te:
        return make(**kwargs)
    spec = make(**kwargs, normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = RMSNorm
    layer.pre_mlp_layernorm = RMSNorm
    mlp = mlp_submodules(layer)
    if config.use_te_activation_func:
        mlp.activation_func = SwiGLU
    attention = layer.self_attention.submodules
    attention.linear_qkv, attention.linear_proj = ColumnLinear, RowLinear
    attention.core_attention = PackedAttention
    if config.num_moe_experts is None:
        mlp.linear_fc1, mlp.linear_fc2 = ColumnLinear, RowLinear
    if config.qk_layernorm:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    # In checkpoints norms carry Transformer Engine's names, so that these load with either kind of layers. Upstream
    # renames the norm before experts, too, which Transformer Engine's layers keep apart.
    renamed = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if config.num_moe_experts is None:
        renamed["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    layer.sharded_state_dict_keys_map = renamed
    return spec
