"""FamilyConfig -> megatron's TransformerConfig."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from prime_megatron.config.model import ParallelConfig
from prime_megatron.families import FamilyConfig
from prime_megatron.families.base import RopeScaling
from prime_megatron.families.megatron_layout import padded_groups
from prime_megatron.parallel.layers import layer_ranges
from prime_megatron.parallel.topology import ParallelSizes

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


def transformer_config(
    config: FamilyConfig, parallel: ParallelConfig, sizes: ParallelSizes, dtype: torch.dtype, *, te: bool
) -> TransformerConfig:
    """What megatron-core needs to build and run the model, on CPU and GPU alike.

    te: the layers are Transformer Engine's. Fusions that need apex or compile on first use stay off.
    """
    from megatron.core.transformer import TransformerConfig

    groups = padded_groups(config, sizes.tensor)
    kwargs: dict[str, Any] = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.heads // config.kv_heads * groups,
        "num_query_groups": groups,
        "kv_channels": config.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.norm_eps,
        "qk_layernorm": config.qk_norm,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        # Of the feed-forward; attention's output may differ (``spec.layer_spec``).
        "add_bias_linear": config.mlp_bias,
        "add_qkv_bias": config.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "window_size": None if config.window is None else (config.window - 1, 0),
        "window_attn_skip_freq": _windowed(config) if config.full_layers else None,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "calculate_per_token_loss": True,
        "variable_seq_lengths": True,
        # The only dispatcher for variable lengths; megatron asks for it in dense models, too.
        "moe_token_dispatcher_type": "alltoall",
        "deterministic_mode": not te,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        # Despite its name: the MLP takes its activation from the layer spec (spec.layer_spec).
        "use_te_activation_func": not te and not config.experts,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "use_cpu_initialization": False,
        # Weights are always loaded (load_hf accounts for every parameter); drawing them first only costs time. Without
        # initialisation altogether megatron would not mark them as tensor-parallel, and gradient norms would be wrong.
        "init_method": _leave,
        "output_layer_init_method": _leave,
        "embedding_init_method": _leave,
        "attention_softmax_in_fp32": True,
    }
    kwargs.update(_parallel(config, parallel, sizes))
    kwargs.update(_recompute(parallel))
    if config.experts:
        kwargs.update(_moe(config, te))
    made = TransformerConfig(**kwargs)
    _set_attention_factor(made, config.rope_scaling)
    return made


def _set_attention_factor(made: TransformerConfig, scaling: RopeScaling | None) -> None:
    """For Transformer Engine's layers: upstream multiplies cosines and sines by 0.1 mscale ln(scaling factor) + 1
    where these are set."""
    if scaling is not None and scaling.attention_factor != 1.0:
        made.yarn_rotary_scaling_factor = math.e
        made.yarn_mscale = 10.0 * (scaling.attention_factor - 1.0)
        made.yarn_mscale_all_dim = 0.0


def _windowed(config: FamilyConfig) -> list[int]:
    """1 for a layer with the window, 0 without."""
    return [int(config.layer_window(layer) is not None) for layer in range(config.layers)]


def _leave(weight: torch.Tensor) -> torch.Tensor:
    """An initialisation that draws nothing."""
    return weight


def _parallel(config: FamilyConfig, parallel: ParallelConfig, sizes: ParallelSizes) -> dict[str, Any]:
    chunked = sizes.virtual_pipeline > 1
    return {
        "tensor_model_parallel_size": sizes.tensor,
        "pipeline_model_parallel_size": sizes.pipeline,
        "virtual_pipeline_model_parallel_size": sizes.virtual_pipeline if chunked else None,
        "context_parallel_size": sizes.context,
        "expert_model_parallel_size": sizes.expert,
        "expert_tensor_parallel_size": sizes.expert_tensor,
        "sequence_parallel": parallel.sequence and sizes.tensor > 1,
        "pipeline_model_parallel_layout": _layout(config, parallel, sizes) if sizes.pipeline > 1 else None,
        # With virtual stages, batched point-to-point calls give wrong gradients (upstream); overlapped ones do not.
        "batch_p2p_comm": not chunked,
        "overlap_p2p_comm": chunked,
    }


def _layout(config: FamilyConfig, parallel: ParallelConfig, sizes: ParallelSizes) -> list[list[str]]:
    """Megatron's explicit layout, virtual stages outermost; one path for even and uneven splits."""
    ranges = layer_ranges(config.layers, sizes.pipeline, sizes.virtual_pipeline, parallel.pipeline_layers)
    rows = [
        ["decoder"] * len(ranges[stage][chunk])
        for chunk in range(sizes.virtual_pipeline)
        for stage in range(sizes.pipeline)
    ]
    rows[0] = ["embedding", *rows[0]]
    rows[-1] = [*rows[-1], "loss"]
    return rows


def _recompute(parallel: ParallelConfig) -> dict[str, Any]:
    if parallel.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if parallel.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def _moe(config: FamilyConfig, te: bool) -> dict[str, Any]:
    """Dropless routing; softmax before the choice when the chosen weights are not renormalised."""
    return {
        "num_moe_experts": config.experts,
        "moe_router_topk": config.experts_per_token,
        "moe_ffn_hidden_size": config.expert_ffn,
        "moe_router_pre_softmax": not config.normalize_expert_weights,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": te,
        "moe_router_dtype": "fp32",
    }
