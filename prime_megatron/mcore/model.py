"""GPTModel chunks that return hidden states; the head is applied by the caller."""

from __future__ import annotations

import re
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from prime_megatron.config.model import Layers, ParallelConfig
from prime_megatron.device import current_device, on_gpu
from prime_megatron.families import FamilyConfig
from prime_megatron.families.megatron_layout import check_layout, padded_vocab
from prime_megatron.families.rope import attention_factor, inverse_frequencies
from prime_megatron.mcore.cpu.norm import RMSNorm
from prime_megatron.mcore.cpu.rotary import rotary_table
from prime_megatron.mcore.packed import Packed
from prime_megatron.mcore.spec import layer_spec, takes_te
from prime_megatron.mcore.transformer_config import transformer_config
from prime_megatron.mcore.versions import experts_are_marked
from prime_megatron.parallel.topology import Topology

_ATTENTION = re.compile(r"self_attention\.linear_(qkv|proj)\.(weight|bias)$")


class HiddenStatesModel(GPTModel):
    """A GPTModel chunk whose last stage returns the hidden states after the final norm, [T, 1, H].

    With sequence parallelism that is this tensor-parallel rank's part of the sequence, [T / tensor, 1, H].
    ``family`` describes the model, ``stage_layers`` is parallel.pipeline_layers, ``te`` says that ``config`` and the
    spec are of Transformer Engine's layers. ``value_head.weight`` [1, H] is
    the critic's output (on the last stage of a model built with it), the same on every tensor-parallel rank:
    its gradient is right where the hidden states are gathered before it is applied.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        family: FamilyConfig,
        stage_layers: tuple[int, ...] | None,
        value_head: bool,
        te: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config, **kwargs)
        self.family = family
        self.stage_layers = stage_layers
        self.transformer_engine = te
        if hasattr(self, "rotary_pos_emb"):
            # Upstream scales frequencies with fixed constants; ours come from the model's config.
            self.rotary_pos_emb.inv_freq = inverse_frequencies(family).to(self.rotary_pos_emb.inv_freq.device)
        self.has_value_head = value_head
        if value_head and self.post_process:
            self.output_layer: Any = None
            weight = torch.zeros(1, family.hidden, dtype=config.params_dtype, device=current_device())
            self.value_head = torch.nn.Linear(family.hidden, 1, bias=False, device="meta")
            self.value_head.weight = torch.nn.Parameter(weight)

    def _preprocess(
        self, input_ids: Tensor, position_ids: Tensor, *args: Any, packed_seq_params: Packed, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Megatron's; without Transformer Engine our attention turns queries and keys, so that its layers do not."""
        prepared = super()._preprocess(input_ids, position_ids, *args, packed_seq_params=packed_seq_params, **kwargs)
        if self.transformer_engine:
            return prepared
        frequencies = self.rotary_pos_emb.inv_freq.to(position_ids.device)
        packed_seq_params.rotary = rotary_table(
            position_ids[0], frequencies, self.config.params_dtype, attention_factor(self.family)
        )
        decoder_input, _, *others = prepared
        return (decoder_input, None, *others)

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.post_process:
            head: Any = self.value_head if self.has_value_head else self.output_layer
            # The head's forward never runs, but its pre-forward hooks must: with an overlapped parameter
            # gather they wait for the weight that head_weight() hands out.
            for hook in tuple(head._forward_pre_hooks.values()):
                hook(head, (hidden_states,))
        return hidden_states

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's, but attention groups padded with zeros load from and into layouts that pad otherwise."""
        # Upstream's language models look for the vocabulary's output layer, which a value model does not have.
        whole = super(LanguageModule, self) if self.has_value_head else super()
        sharded = whole.sharded_state_dict(*args, **kwargs)
        for tensor in nested_values(sharded):
            if isinstance(tensor, ShardedTensor) and self.may_pad and _ATTENTION.search(tensor.key):
                tensor.allow_shape_mismatch = True
        return sharded

    @property
    def may_pad(self) -> bool:
        """Whether some tensor-parallel size needs ``padded_groups``."""
        groups = self.family.kv_heads
        return groups & (groups - 1) != 0 or self.config.num_query_groups != groups

    def head_weight(self) -> Tensor:
        """The output weight, on the last pipeline stage: this rank's vocabulary rows [V padded / tensor, H],
        tied or not; of a value model [1, H]."""
        assert self.post_process, "the head lives on the last pipeline stage"
        if self.has_value_head:
            return self.value_head.weight
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def build_model(
    family: FamilyConfig,
    topology: Topology,
    parallel: ParallelConfig,
    dtype: torch.dtype,
    *,
    wrap_ddp: bool,
    ddp: DistributedDataParallelConfig | None = None,
    value_head: bool = False,
    layers: Layers = Layers.auto,
) -> list[Any]:
    """This rank's model chunks, one per virtual pipeline stage, weights not yet set (load_hf fills them).

    wrap_ddp: wrap each in megatron's DistributedDataParallel (options ``ddp``; none: ddp_config(...)).
    Raises InputError where the model does not split over the sizes, or the layers are not to be had here.
    """
    check_layout(family, parallel, topology.sizes)
    te = takes_te(layers)
    config = transformer_config(family, parallel, topology.sizes, dtype, te=te)
    config.finalize_model_grads_func = None
    chunks = [
        _chunk(config, family, topology, parallel.pipeline_layers, chunk, te=te, value_head=value_head)
        for chunk in range(topology.sizes.virtual_pipeline)
    ]
    if not wrap_ddp:
        return chunks
    options = ddp_config(parallel, dtype) if ddp is None else ddp
    return [
        DistributedDataParallel(config, options, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]


def ddp_config(parallel: ParallelConfig, dtype: torch.dtype) -> DistributedDataParallelConfig:
    """Gradients summed, in float32, over the data-parallel ranks, as the config's switches say."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=dtype is not torch.float32,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and parallel.distributed_optimizer,
        use_distributed_optimizer=parallel.distributed_optimizer,
        check_for_nan_in_grad=False,
        average_in_collective=False,
    )


def unwrap(chunk: Any) -> HiddenStatesModel:
    """The model inside any wrappers."""
    while hasattr(chunk, "module") and not isinstance(chunk, HiddenStatesModel):
        chunk = chunk.module
    return chunk


def _chunk(
    config: TransformerConfig,
    family: FamilyConfig,
    topology: Topology,
    stage_layers: tuple[int, ...] | None,
    chunk: int,
    *,
    te: bool,
    value_head: bool,
) -> HiddenStatesModel:
    first = topology.is_first_stage and chunk == 0
    last = topology.is_last_stage and chunk == topology.sizes.virtual_pipeline - 1
    virtual = chunk if topology.sizes.virtual_pipeline > 1 else None
    spec: Any = layer_spec(config, family, te=te)
    if not te:
        num_layers = get_num_layers_to_build(config, vp_stage=virtual)
        spec = TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=RMSNorm)
    model = HiddenStatesModel(
        config,
        family=family,
        stage_layers=stage_layers,
        value_head=value_head,
        te=te,
        transformer_layer_spec=spec,
        vocab_size=padded_vocab(family.vocab, topology.sizes.tensor),
        max_sequence_length=family.max_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=family.tied and not value_head,
        position_embedding_type="rope",
        rotary_base=family.rope_theta,
        vp_stage=virtual,
    )
    _separate_experts(model, topology)
    # On a CPU everything is there, and fake tensors (mcore/fake.py) cannot be moved.
    return model.to(current_device()) if on_gpu() else model


def _separate_experts(model: HiddenStatesModel, topology: Topology) -> None:
    """Have experts' gradients summed over the experts' replicas.

    Before 0.19 upstream takes experts for dense layers where the expert-parallel size is 1, and sums their gradients
    over the dense data-parallel ranks only. Unless the tensor sizes agree, tensor-parallel ranks are replicas of an
    expert, too, each with the gradient of its own tokens: it would be silently incomplete.
    """
    if experts_are_marked():
        return
    if topology.sizes.expert == 1 and topology.sizes.expert_tensor != topology.sizes.tensor:
        for name, param in model.named_parameters():
            if ".mlp.experts." in name:
                param.allreduce = False  # upstream's mark of an expert-parallel parameter
